"""Limits of llama.cpp, whose convert_lora_to_gguf reads PEFT's folders.

The converter takes pairs of A and B, and one α for all of them: it scales each update by α / r,
with r the rank of B. It stops at any other tensor, and ignores the other settings.
"""

import re
from collections.abc import Collection

from tinygrad_peft.errors import shortened

__all__ = ["refused_tensors", "unseen_settings"]

# Trained norms are copied, and an embedding's own table is skipped.
_TAKEN = re.compile(
    r".*(\.lora_[AB]\.weight|\.lora_embedding_[AB]|\.base_layer\.weight|(_layernorm|\.norm)\b.*)"
)
_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.lora_[AB]\.weight")


def refused_tensors(names: Collection[str]) -> list[str]:
    """List the tensors that stop the converter, or that it misreads."""
    refused = sorted(name for name in names if not _TAKEN.fullmatch(name))
    turned = sorted(name for name in names if _CONV1D.fullmatch(name))
    return [
        *([f"it stops at {len(refused)} tensors, as at {_first(refused)}"] if refused else []),
        *([f"it transposes GPT-2's updates, as at {_first(turned)}"] if turned else []),
    ]


def unseen_settings(*, use_rslora: bool, alphas: Collection[str]) -> list[str]:
    """List the settings that change the scaling and that the converter ignores."""
    return [
        *(["use_rslora: it scales by α/r, not by α/√r"] if use_rslora else []),
        *(["alpha_pattern: it uses one α for all layers"] if alphas else []),
    ]


def _first(names: Collection[str]) -> str:
    return shortened(min(names), 100)
