"""What a client may write: mypy --strict accepts every line of this file."""

import tinygrad_peft
import tinygrad_peft_lora

public_names: list[str] = [*tinygrad_peft.__all__, *tinygrad_peft_lora.__all__]
