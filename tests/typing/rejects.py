"""What mypy --strict must object to: an ignore that nothing needs is an error in itself."""

import tinygrad_peft
import tinygrad_peft_lora

tinygrad_peft.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_lora.no_such_name  # type: ignore[attr-defined]
