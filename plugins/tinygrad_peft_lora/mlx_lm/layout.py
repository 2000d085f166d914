"""The layout of mlx-lm's folders, and its names for modules and tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import FolderLayout, ForeignName

__all__ = ["ABSENT", "MLX_LM", "Naming", "family_problems"]

_OWN = frozenset(("fine_tune_type", "lora_layers", "lora_parameters", "num_layers"))


def _recognises(settings: Mapping[str, object]) -> bool:
    return bool(_OWN & settings.keys()) and "peft_type" not in settings


def _kind_of(settings: Mapping[str, object]) -> str:
    return str(settings.get("fine_tune_type", "lora"))


MLX_LM = FolderLayout(
    name="mlx-lm",
    weights="adapters.safetensors",
    never_read="adapters.npz",
    save_again="with a current mlx-lm",
    base_key="model",
    noted=("model",),
    tensor_names=r".*\.lora_[ab]",
    recognises=_recognises,
    kind_of=_kind_of,
)
# The start of a checkpoint's paths where mlx-lm has "model", for the families that it supports.
_ROOTS: Mapping[str, str] = {"gpt2": "transformer.", "llama": "model."}
# Modules that mlx-lm's models of a family do not have.
ABSENT: Mapping[str, Sequence[str]] = {
    "gpt2": ("classifier", "lm_head"),
    "llama": ("classifier",),
}
_NAMES: Mapping[str, ForeignName] = {
    "lora_A.weight": ForeignName("lora_a", transposed=True),
    "lora_B.weight": ForeignName("lora_b", transposed=True),
    "lora_embedding_A": ForeignName("lora_a", transposed=True),
    "lora_embedding_B": ForeignName("lora_b", transposed=True),
    "lora_magnitude_vector": ForeignName("m"),
}


@dataclass(frozen=True)
class Naming:
    """mlx-lm's names in a model of the base's family."""

    base: TransformerConfig | None

    def __call__(self, path: str, name: str) -> ForeignName:
        known = _NAMES[name]
        return ForeignName(f"{self.path(path)}.{known.name}", transposed=known.transposed)

    @property
    def _root(self) -> str:
        return _ROOTS["llama" if self.base is None else self.base.model_type]

    def path(self, path: str) -> str:
        """Return mlx-lm's path for a path in the checkpoint."""
        bare = path.removeprefix(self._root)
        return bare if bare == "lm_head" else f"model.{bare}"

    def place(self, path: str) -> str:
        """Return the checkpoint's path for mlx-lm's; paths within a layer are the same in both."""
        bare = path.removeprefix("model.")
        rooted = self.base is None or self.base.head != "none"
        return f"{self._root}{bare}" if rooted and bare != path else bare


def family_problems(base: TransformerConfig | None) -> list[str]:
    """Refuse a base of a family that mlx-lm does not support."""
    if base is None or base.model_type in _ROOTS:
        return []
    found = base.model_type or "a model without a family"
    return [f"mlx-lm: expected one of {', '.join(_ROOTS)}, got {found}"]
