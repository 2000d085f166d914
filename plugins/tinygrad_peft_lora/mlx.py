"""LoRA as mlx-lm reads and writes it (mlx_lm 0.32: tuner/utils.py, lora.py, dora.py).

    y = W₀ x + s (x a) b        a (in, r) = Aᵀ, b (r, out) = Bᵀ, s the `scale` itself, not over r

`fine_tune_type` is "lora" or "dora", whose magnitudes are m (out,). Adapted are the places that
`keys` names in the last `num_layers` layers (all, where that is not above 0; every linear place,
without `keys`), and those that it names by their whole path anywhere. The settings tell of the
training run as well, in keys that mlx-lm reads no more: they are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.models import module_path
from tinygrad_peft.nn import Affine, Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft import (
    FolderLayout,
    ForeignFolder,
    ForeignName,
    ForeignRequest,
    ForeignStep,
    capture_seams,
    unknown_settings,
)
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.mlx_file import contradictions, within

__all__ = ["MLX", "read_mlx", "write_mlx"]

_OWN = frozenset(("fine_tune_type", "lora_layers", "lora_parameters", "num_layers"))


def _recognises(settings: Mapping[str, object]) -> bool:
    return bool(_OWN & settings.keys()) and "peft_type" not in settings


def _kind_of(settings: Mapping[str, object]) -> str:
    return str(settings.get("fine_tune_type", "lora"))


MLX = FolderLayout(
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
# What a checkpoint's paths begin with where mlx-lm has "model": the families that it has at all.
_ROOTS: Mapping[str, str] = {"gpt2": "transformer.", "llama": "model."}
# What no model of the family has there.
_ABSENT: Mapping[str, Sequence[str]] = {
    "gpt2": ("classifier", "lm_head"),
    "llama": ("classifier",),
}
_EMBEDDINGS = frozenset(("model.embed_tokens", "model.wte", "model.wpe"))
_NAMES: Mapping[str, ForeignName] = {
    "lora_A.weight": ForeignName("lora_a", transposed=True),
    "lora_B.weight": ForeignName("lora_b", transposed=True),
    "lora_embedding_A": ForeignName("lora_a", transposed=True),
    "lora_embedding_B": ForeignName("lora_b", transposed=True),
    "lora_magnitude_vector": ForeignName("m"),
}


@dataclass(frozen=True)
class _Parameters:
    """`lora_parameters`."""

    rank: int
    scale: float
    dropout: float = 0.0
    keys: Sequence[str] | None = None


@dataclass(frozen=True)
class _Settings:
    """What of adapter_config.json says how an adapter is read."""

    num_layers: int
    lora_parameters: _Parameters
    fine_tune_type: str = "lora"


def read_mlx(folder: ForeignFolder) -> ForeignStep:
    """The step in a folder of mlx-lm's layout. Raises ConfigError with all that is wrong."""
    settings = _read_settings(folder.settings)
    if problems := _family_problems(folder.base):
        raise ConfigError("\n".join(problems))
    config, naming = _config(settings, folder), _Naming(folder.base)
    wrong = _stored_problems(settings, folder) if folder.base is None else []
    return ForeignStep(config, folder.settings, naming, wrong)


def write_mlx(request: ForeignRequest, config: LoraConfig) -> ForeignStep:
    """The step in mlx-lm's layout. Raises ConfigError with all that this cannot hold."""
    if problems := _family_problems(request.base) + _unequalled(config, request):
        raise ConfigError("\n".join(problems))
    naming, path = _Naming(request.base), request.paths[0]
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


@dataclass(frozen=True)
class _Naming:
    """mlx-lm's names in a model of this kind."""

    base: TransformerConfig | None

    def __call__(self, path: str, name: str) -> ForeignName:
        known = _NAMES[name]
        return ForeignName(f"{self.path(path)}.{known.name}", transposed=known.transposed)

    @property
    def _root(self) -> str:
        return _ROOTS["llama" if self.base is None else self.base.model_type]

    def path(self, path: str) -> str:
        """mlx-lm's path for the checkpoint's."""
        bare = path.removeprefix(self._root)
        return bare if bare == "lm_head" else f"model.{bare}"

    def place(self, path: str) -> str:
        """The checkpoint's path for mlx-lm's; a place within a layer has the same."""
        bare = path.removeprefix("model.")
        rooted = self.base is None or self.base.head != "none"
        return f"{self._root}{bare}" if rooted and bare != path else bare


def _read_settings(values: Mapping[str, object]) -> _Settings:
    parameters = values.get("lora_parameters")
    problems = []
    if values.get("fine_tune_type") == "full":
        raise ConfigError("fine_tune_type 'full' is all of a model's weights, and no adapter")
    if isinstance(parameters, Mapping):
        unknown = unknown_settings(parameters, [field.name for field in fields(_Parameters)])
        problems += [f"lora_parameters has the unknown {setting}" for setting in unknown]
    try:
        settings = msgspec.convert(values, _Settings)
    except msgspec.ValidationError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from None
    own = settings.lora_parameters
    if settings.fine_tune_type not in ("lora", "dora"):
        problems.append(f"fine_tune_type {settings.fine_tune_type!r} is none of lora, dora, full")
    if not own.scale:
        problems.append(f"lora_parameters.scale={own.scale:g} must be a number other than 0")
    if own.keys is not None and not own.keys:
        problems.append("lora_parameters.keys is empty: nothing is adapted")
    if settings.fine_tune_type == "dora" and _EMBEDDINGS & set(own.keys or ()):
        problems.append("fine_tune_type 'dora' on an embedding: its magnitudes are others here")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _stored_problems(settings: _Settings, folder: ForeignFolder) -> list[str]:
    own, is_dora = settings.lora_parameters, settings.fine_tune_type == "dora"
    return contradictions(
        folder.shapes,
        names=("lora_a", "lora_b", "m") if is_dora else ("lora_a", "lora_b"),
        rank=own.rank,
        keys=own.keys,
        num_layers=settings.num_layers,
    )


def _family_problems(base: TransformerConfig | None) -> list[str]:
    if base is None or base.model_type in _ROOTS:
        return []
    return [f"mlx-lm has no {base.model_type or 'model without a family'}: {', '.join(_ROOTS)}"]


def _config(settings: _Settings, folder: ForeignFolder) -> LoraConfig:
    own, naming = settings.lora_parameters, _Naming(folder.base)
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
    """The layers that are adapted, if they are not all.

    Where the model is not known, they are those in the file, of which the last is the model's.
    """
    if folder.base is not None:
        depth = folder.base.num_hidden_layers
        return list(range(depth - last, depth)) if 0 < last < depth else None
    found = sorted({layer for name in folder.shapes if (layer := within(name)[0]) is not None})
    return found if found and 0 < last <= found[-1] else None


def _linears(folder: ForeignFolder) -> list[str]:
    """The affine layers of a layer, by their paths in it: what is adapted without `keys`."""
    if folder.base is None:
        paths = [name.rpartition(".")[0] for name in folder.shapes]
    else:
        seams = capture_seams(Transformer(folder.base, Skeleton()))
        paths = [s.path for s in seams if s.layer is not None and isinstance(s.module, Affine)]
    return sorted({place for path in paths if (place := within(path)[1])})


def _alpha(scale: float, rank: int) -> float:
    """The α with α/r = scale, and with few digits where there is such a one."""
    alpha = scale * rank
    short = round(alpha, 9)
    return short if rank and short / rank == scale else alpha


def _unequalled(config: LoraConfig, request: ForeignRequest) -> list[str]:
    """What of the settings mlx-lm has not."""
    paths = request.paths
    ranks = {config.rank(path) for path in paths}
    scales = {config.scaling(path) for path in paths}
    places = {path: module_path(request.base, path) for path in paths}
    embeddings = [path for path, place in places.items() if place.startswith("embed_")]
    heads = [
        path for path, place in places.items() if place in _ABSENT.get(request.base.model_type, ())
    ]
    rules = {
        f"{', '.join(heads)}: its model has no such place": bool(heads),
        f"bias={config.bias!r}: it trains no biases": config.bias != "none",
        "lora_bias: it has no biases": config.lora_bias,
        "trainable_token_indices: it trains no tokens": bool(config.token_ids()),
        "modules_to_save: it trains no modules whole": bool(config.modules_to_save),
        f"ranks {sorted(ranks)}: it has one rank for all places": len(ranks) > 1,
        f"scalings {sorted(scales)}: it has one scale for all places": len(scales) > 1,
        "use_dora on an embedding: its magnitudes are others there": (
            config.use_dora and bool(embeddings)
        ),
    }
    return failures(rules)


def _places(paths: Sequence[str], base: TransformerConfig) -> tuple[int, list[str]]:
    """`num_layers` and `keys` that name these places, by mlx-lm's paths, and no others."""
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
    return depth, list(paths)  # a whole path is taken in any layer
