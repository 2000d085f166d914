"""Read a LoRA from a folder of mlx-lm's."""

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import Affine, Skeleton, Transformer
from tinygrad_peft.peft import ForeignFolder, ForeignStep, capture_seams
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.mlx_lm.file import contradictions, within
from tinygrad_peft_lora.mlx_lm.layout import Naming, family_problems
from tinygrad_peft_lora.mlx_lm.settings import Settings, read_settings

__all__ = ["read_mlx_lm"]


def read_mlx_lm(folder: ForeignFolder) -> ForeignStep:
    """Read the step in a folder of mlx-lm's layout. Raises ConfigError with everything wrong."""
    settings = read_settings(folder.settings)
    if problems := family_problems(folder.base):
        raise ConfigError("\n".join(problems))
    wrong = _stored_problems(settings, folder) if folder.base is None else []
    return ForeignStep(_config(settings, folder), folder.settings, Naming(folder.base), wrong)


def _stored_problems(settings: Settings, folder: ForeignFolder) -> list[str]:
    own, is_dora = settings.lora_parameters, settings.fine_tune_type == "dora"
    return contradictions(
        folder.shapes,
        names=("lora_a", "lora_b", "m") if is_dora else ("lora_a", "lora_b"),
        rank=own.rank,
        keys=own.keys,
        num_layers=settings.num_layers,
    )


def _config(settings: Settings, folder: ForeignFolder) -> LoraConfig:
    own, naming = settings.lora_parameters, Naming(folder.base)
    keys = _linears(folder) if own.keys is None else own.keys
    return LoraConfig(
        r=own.rank,
        lora_alpha=_alpha(own.scale, own.rank),
        lora_dropout=own.dropout,
        use_dora=settings.fine_tune_type == "dora",
        target_modules=[naming.place(key) for key in keys],
        layers_to_transform=_layers(settings.num_layers, folder),
    )


def _layers(last: int, folder: ForeignFolder) -> list[int] | None:
    """Return the adapted layers, or None for all of them.

    Without the model, they are the layers in the file, and the last one is taken for the model's.
    """
    if folder.base is not None:
        depth = folder.base.num_hidden_layers
        return list(range(depth - last, depth)) if 0 < last < depth else None
    found = sorted({layer for name in folder.shapes if (layer := within(name)[0]) is not None})
    return found if found and 0 < last <= found[-1] else None


def _linears(folder: ForeignFolder) -> list[str]:
    """List the affine layers by their paths in a layer: they are adapted without `keys`."""
    if folder.base is None:
        paths = [name.rpartition(".")[0] for name in folder.shapes]
    else:
        seams = capture_seams(Transformer(folder.base, Skeleton()))
        paths = [s.path for s in seams if s.layer is not None and isinstance(s.module, Affine)]
    return sorted({place for path in paths if (place := within(path)[1])})


def _alpha(scale: float, rank: int) -> float:
    """Return the α with α/r = scale, with few digits where possible."""
    alpha = scale * rank
    short = round(alpha, 9)
    return short if rank and short / rank == scale else alpha
