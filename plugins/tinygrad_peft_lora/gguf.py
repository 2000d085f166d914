"""What becomes of a LoRA in llama.cpp, whose convert_lora_to_gguf reads PEFT's folders.

It takes pairs of A and B, and one α for all of them: each update is scaled by α / r, where r is the
rank of its own B. At any other tensor it stops; what only the settings say, it does not see.
"""

import re
from collections.abc import Collection

from tinygrad_peft.errors import shortened

__all__ = ["refused_tensors", "unseen_settings"]

# Trained norms are taken as they are, and an embedding's own table is passed over.
_TAKEN = re.compile(
    r".*(\.lora_[AB]\.weight|\.lora_embedding_[AB]|\.base_layer\.weight|(_layernorm|\.norm)\b.*)"
)
_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.lora_[AB]\.weight")


def refused_tensors(names: Collection[str]) -> list[str]:
    """At which tensors the converter stops, or which it gets wrong."""
    refused = sorted(name for name in names if not _TAKEN.fullmatch(name))
    turned = sorted(name for name in names if _CONV1D.fullmatch(name))
    return [
        *([f"it stops at {len(refused)} tensors, {_first(refused)} among them"] if refused else []),
        *([f"it turns GPT-2's updates around, such as {_first(turned)}"] if turned else []),
    ]


def unseen_settings(*, use_rslora: bool, alphas: Collection[str]) -> list[str]:
    """By which settings the scaling is another there."""
    return [
        *(["it scales by α/r, and this by α/√r (use_rslora)"] if use_rslora else []),
        *(["it knows one α, and not alpha_pattern"] if alphas else []),
    ]


def _first(names: Collection[str]) -> str:
    return shortened(min(names), 100)
