"""Counts of the parameters that each method trains, from sizes alone.

With d the model's width, L layers, r a rank, m a bottleneck, P and n lengths:

    full        4 L d²             the four projections of every attention
    LoRA        t L r (d + d)      on t of them, 2 by default: A (r, d) and B (d, r)
    adapters    2 L (2 d m)        two in each layer: W_down (d, m) and W_up (m, d), no biases
    prefix      2 L P d            keys and values, (P, heads, d / heads) each
    prompt      n d                once, in front of the first layer

Memory in float32: 4 bytes for a frozen parameter; 16 for a trained one, with its gradient and the
two moments of AdamW. Activations come on top.

    full        16 N               with N parameters in the model
    method      4 N + 16 n         with n trained beside them
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import TypedDict, TypeGuard

from tinygrad_peft.reference._basics import Array, check_heads, check_sizes, unknown
from tinygrad_peft.reference.attention import PROJECTIONS, TARGETS

__all__ = [
    "Efficiency",
    "MethodCount",
    "analyze_peft_efficiency",
    "compare_peft_methods",
    "compute_parameter_efficiency",
    "count_frozen_parameters",
    "count_trainable_parameters",
]

FROZEN_BYTES, TRAINED_BYTES = 4, 16


class MethodCount(TypedDict):
    """A method's trained parameters, and their share of full fine-tuning: 1.0 for all of it."""

    params: int
    ratio: float
    description: str


class Efficiency(TypedDict):
    """The findings of `analyze_peft_efficiency`; memory in bytes."""

    trainable_params: int
    total_params: int
    counted: str
    efficiency_ratio: float
    memory_estimate: int
    memory_needed: int
    memory_full: int


# The size of each method, under all of its names, and its default.
_SIZES: Mapping[str, tuple[Sequence[str], int]] = {
    "lora": (("rank", "r", "lora_rank"), 8),
    "adapter": (("bottleneck", "bottleneck_dim", "adapter_bottleneck"), 64),
    "prefix": (("length", "prefix_length", "num_virtual_tokens"), 10),
    "prompt": (("length", "prompt_length", "num_virtual_tokens"), 20),
}
# Settings beside it; all but target_modules leave the count as it is.
_SETTINGS: Mapping[str, Sequence[str]] = {
    "lora": ("target_modules", "alpha", "lora_alpha", "dropout", "lora_dropout"),
    "adapter": ("activation",),
    "prefix": (),
    "prompt": (),
}
_LAYERS = ("n_layers", "num_layers")
_HEADS = ("n_heads", "num_heads")


def count_trainable_parameters(model_params: Sequence[Array]) -> int:
    """Count the numbers in trained arrays."""
    return sum(array.size for array in model_params)


def count_frozen_parameters(frozen_params: Sequence[Array]) -> int:
    """Count the numbers in frozen arrays."""
    return sum(array.size for array in frozen_params)


def compute_parameter_efficiency(trainable: int, total: int) -> dict[str, float]:
    """Return both counts, trainable_ratio = trainable / total, and efficiency_gain, its inverse.

    A total of 0 has the ratio 0, and nothing trainable the gain inf.
    """
    return {
        "trainable_params": trainable,
        "total_params": total,
        "trainable_ratio": trainable / total if total > 0 else 0.0,
        "efficiency_gain": total / trainable if trainable > 0 else float("inf"),
    }


def compare_peft_methods(
    d_model: int = 4096,
    num_layers: int = 32,
    num_heads: int = 32,
    lora_rank: int = 8,
    adapter_bottleneck: int = 64,
    prefix_length: int = 10,
    prompt_length: int = 20,
) -> dict[str, MethodCount]:
    """Count what each method trains, by default at 7B scale.

    The keys are full_fine_tuning, lora, adapters, prefix_tuning and prompt_tuning.

    Raises:
        ValueError: a size below 1, or heads that do not divide d_model.
    """
    check_sizes(
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        lora_rank=lora_rank,
        adapter_bottleneck=adapter_bottleneck,
        prefix_length=prefix_length,
        prompt_length=prompt_length,
    )
    check_heads(d_model, num_heads)
    # 4 L d²
    full = 4 * num_layers * d_model**2

    def count(method: str, size: int, description: str) -> MethodCount:
        params = _trained(method, d_model, num_layers, size)
        return {"params": params, "ratio": params / full, "description": description}

    return {
        "full_fine_tuning": {
            "params": full,
            "ratio": 1.0,
            "description": "Update all attention weights",
        },
        "lora": count("lora", lora_rank, f"LoRA rank={lora_rank} on {','.join(TARGETS).upper()}"),
        "adapters": count("adapter", adapter_bottleneck, f"Bottleneck={adapter_bottleneck}"),
        "prefix_tuning": count("prefix", prefix_length, f"{prefix_length} prefix tokens"),
        "prompt_tuning": count("prompt", prompt_length, f"{prompt_length} soft prompts"),
    }


def _trained(
    method: str, d: int, layers: int, size: int, targets: Collection[object] = TARGETS
) -> int:
    """Count the parameters that a method trains."""
    match method:
        case "lora":
            # t L r (d + d)
            return len(targets) * layers * size * (d + d)
        case "adapter":
            # 2 L (2 d m)
            return 2 * layers * (2 * d * size)
        case "prefix":
            # 2 L P d
            return 2 * layers * size * d
        case _:
            # n d
            return size * d


def analyze_peft_efficiency(
    model_config: Mapping[str, int], method: str, method_config: Mapping[str, object]
) -> Efficiency:
    """Count what a method trains on a model, and the memory that this saves.

    model_config: d_model and n_layers; n_heads to have them checked. d_ff adds the two matrices of
        each feed-forward layer to the model, 2 L d d_ff, and vocab_size the embeddings, V d.
    method: lora, adapter, prefix or prompt.
    method_config: the rank, bottleneck or length, as `compare_peft_methods` or a plugin names it;
        its default is that function's. LoRA also takes target_modules, any of q, k, v, o, and alpha
        and dropout, which train nothing, as an adapter's activation.

    trainable_params: of the method.
    total_params: of the model without the method, in the parts that `counted` names. Without d_ff
        and vocab_size these are the attention projections alone, as in `compare_peft_methods`.
    efficiency_ratio: trainable / total.
    memory_estimate: bytes saved against training all of total_params, memory_full - memory_needed.
    memory_needed: bytes for the frozen model and the method's training, 4 total + 16 trainable.
    memory_full: bytes for full fine-tuning, 16 total.

    Raises:
        ValueError: an unknown method, and all that is wrong with the two configurations.
    """
    if method not in _SIZES:
        raise unknown("method", method, _SIZES)
    problems = [*_model_problems(model_config), *_method_problems(method, method_config)]
    if problems:
        raise ValueError("; ".join(problems))
    parts = _parts(model_config)
    total = sum(parts.values())
    names, default = _SIZES[method]
    trainable = _trained(
        method,
        model_config["d_model"],
        _one_of(model_config, _LAYERS),
        _one_of(method_config, names, default),
        _targets(method_config),
    )
    needed = FROZEN_BYTES * total + TRAINED_BYTES * trainable
    return {
        "trainable_params": trainable,
        "total_params": total,
        "counted": " + ".join(parts),
        "efficiency_ratio": trainable / total,
        "memory_estimate": TRAINED_BYTES * total - needed,
        "memory_needed": needed,
        "memory_full": TRAINED_BYTES * total,
    }


def _parts(config: Mapping[str, int]) -> dict[str, int]:
    """Count the parameters of a model, part by part."""
    d, layers = config["d_model"], _one_of(config, _LAYERS)
    # 4 L d²,  2 L d d_ff,  V d
    counts = {
        "attention projections": 4 * layers * d**2,
        "feed-forward matrices": 2 * layers * d * config.get("d_ff", 0),
        "embeddings": config.get("vocab_size", 0) * d,
    }
    return {part: count for part, count in counts.items() if count}


def _targets(config: Mapping[str, object]) -> Collection[object]:
    """Return the names of target_modules; a bare string is one name."""
    given = config.get("target_modules")
    if given is None:
        return TARGETS
    if isinstance(given, str) or not isinstance(given, Iterable):
        return [given]
    return list(dict.fromkeys(given))


def _model_problems(config: Mapping[str, int]) -> Iterator[str]:
    yield from _unknown_keys(
        "model_config", config, ("d_model", *_LAYERS, *_HEADS, "d_ff", "vocab_size")
    )
    yield from _wrong_sizes(config, config)
    for names in (("d_model",), _LAYERS):
        if not any(name in config for name in names):
            yield f"model_config: {' or '.join(names)} is missing"
    yield from _given_twice("model_config", config, _LAYERS)
    yield from _given_twice("model_config", config, _HEADS)
    d, heads = _one_of(config, ("d_model",), 0), _one_of(config, _HEADS)
    if d % heads:
        yield f"{heads} heads do not divide a width of {d}"


def _method_problems(method: str, config: Mapping[str, object]) -> Iterator[str]:
    names, _ = _SIZES[method]
    yield from _unknown_keys("method_config", config, (*names, *_SETTINGS[method]))
    yield from _wrong_sizes(config, names)
    yield from _given_twice("method_config", config, names)
    for target in _targets(config):
        if target not in PROJECTIONS:
            yield str(unknown("target", str(target), PROJECTIONS))


def _unknown_keys(what: str, config: Mapping[str, object], known: Sequence[str]) -> Iterator[str]:
    return (str(unknown(f"key of {what}", key, known)) for key in config if key not in known)


def _wrong_sizes(config: Mapping[str, object], names: Iterable[str]) -> Iterator[str]:
    wrong = [f"{n}={config[n]!r}" for n in names if n in config and not _is_size(config[n])]
    if wrong:
        yield f"expected at least 1, got {', '.join(wrong)}"


def _given_twice(what: str, config: Mapping[str, object], names: Iterable[str]) -> Iterator[str]:
    given = [name for name in names if name in config]
    if len(given) > 1:
        yield f"{what}: expected one of {' and '.join(given)}, got both"


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and int(value) >= 1


def _one_of(config: Mapping[str, object], names: Iterable[str], default: int = 1) -> int:
    """Return the size under whichever of its names is there."""
    return next((size for name in names if _is_size(size := config.get(name))), default)
