"""Write a LoRA in mlx-lm's layout."""

from collections.abc import Sequence

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.models import module_path
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import ForeignRequest, ForeignStep
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.mlx_lm.layout import ABSENT, Naming, family_problems, within

__all__ = ["write_mlx_lm"]


def write_mlx_lm(request: ForeignRequest, config: LoraConfig) -> ForeignStep:
    """Express a step in mlx-lm's layout. Raises ConfigError with all that it cannot hold."""
    if problems := family_problems(request.base) + _unsupported(config, request):
        raise ConfigError("\n".join(problems))
    naming, path = Naming(request.base), request.paths[0]
    count, keys = _places([naming.path(p) for p in request.paths], request.base)
    parameters = {
        "rank": config.rank(path),
        "scale": config.scaling(path),
        "dropout": config.lora_dropout,
        "keys": keys,
    }
    settings = {
        "fine_tune_type": "dora" if config.use_dora else "lora",
        "num_layers": count,
        "lora_parameters": parameters,
        **({"model": request.base_name} if request.base_name else {}),
    }
    return ForeignStep(config, settings, naming)


def _unsupported(config: LoraConfig, request: ForeignRequest) -> list[str]:
    """List the settings that mlx-lm does not support."""
    paths = request.paths
    ranks = {config.rank(path) for path in paths}
    scales = {config.scaling(path) for path in paths}
    places = {path: module_path(request.base, path) for path in paths}
    absent = ABSENT.get(request.base.model_type, ())
    heads = [path for path, place in places.items() if place in absent]
    on_embedding = any(place.startswith("embed_") for place in places.values())
    rules = {
        f"{', '.join(heads)}: mlx-lm's model has no such module": bool(heads),
        f"bias={config.bias!r}: mlx-lm trains no biases": config.bias != "none",
        "lora_bias: mlx-lm's B has no bias": config.lora_bias,
        "trainable_token_indices: mlx-lm trains no single tokens": bool(config.token_ids()),
        "modules_to_save: mlx-lm trains no whole modules": bool(config.modules_to_save),
        f"ranks {sorted(ranks)}: mlx-lm has one rank for all layers": len(ranks) > 1,
        f"scalings {sorted(scales)}: mlx-lm has one scale for all layers": len(scales) > 1,
        "use_dora on an embedding: mlx-lm's magnitudes differ there": (
            config.use_dora and on_embedding
        ),
    }
    return failures(rules)


def _places(paths: Sequence[str], base: TransformerConfig) -> tuple[int, list[str]]:
    """Return `num_layers` and `keys` that name exactly these paths of mlx-lm's."""
    depth = base.num_hidden_layers
    by_layer: dict[int, set[str]] = {}
    outside = []
    for path in paths:
        layer, place = within(path)
        if layer is None:
            outside.append(path)
        else:
            by_layer.setdefault(layer, set()).add(place)
    alike = {frozenset(names) for names in by_layer.values()}
    last = sorted(by_layer) == list(range(depth))[-len(by_layer) :]
    if len(alike) == 1 and last:
        return len(by_layer), sorted(next(iter(alike))) + outside
    return depth, list(paths)  # mlx-lm takes a whole path in any layer
