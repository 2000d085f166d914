"""How many parameters each method trains, from sizes alone.

With d the model's width, L layers, r a rank, m a bottleneck, P and n lengths:

    full        4 L d²             the four projections of every attention
    LoRA        2 L r (d + d)      on two of them: A (r, d) and B (d, r)
    adapters    2 L (2 d m)        two in each layer: W_down (d, m) and W_up (m, d), no biases
    prefix      2 L P d            keys and values, (P, heads, d / heads) each
    prompt      n d                once, in front of the first layer
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from tinygrad_peft.reference._basics import check_heads, check_sizes, unknown

__all__ = ["Efficiency", "MethodCount", "analyze_peft_efficiency", "compare_peft_methods"]


class MethodCount(TypedDict):
    """What a method trains, and which share of full fine-tuning that is: 1.0 for all of it."""

    params: int
    ratio: float


class Efficiency(TypedDict):
    """What `analyze_peft_efficiency` finds."""

    trainable_params: int
    total_params: int
    efficiency_ratio: float
    memory_estimate: int


@dataclass(frozen=True)
class _Method:
    """A method's one size, as it may be spelt, and how many parameters follow from it."""

    size: Sequence[str]
    default: int
    count: Callable[[int, int, int], int]  # of d, L and the size


_METHODS: Mapping[str, _Method] = {
    "lora": _Method(("rank", "lora_rank"), 8, lambda d, L, r: 2 * L * r * (d + d)),
    "adapter": _Method(
        ("bottleneck", "bottleneck_dim", "adapter_bottleneck"),
        64,
        lambda d, L, m: 2 * L * (2 * d * m),
    ),
    "prefix": _Method(("length", "prefix_length"), 10, lambda d, L, P: 2 * L * P * d),
    "prompt": _Method(("length", "prompt_length"), 20, lambda d, L, n: n * d),  # noqa: ARG005
}
_LAYERS = ("n_layers", "num_layers")
_HEADS = ("n_heads", "num_heads")


def compare_peft_methods(
    d_model: int = 4096,
    num_layers: int = 32,
    num_heads: int = 32,
    lora_rank: int = 8,
    adapter_bottleneck: int = 64,
    prefix_length: int = 10,
    prompt_length: int = 20,
) -> dict[str, MethodCount]:
    """The counts of full fine-tuning, lora, adapters, prefix and prompt; by default at 7B scale.

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
    params = {
        "full": full,
        "lora": _METHODS["lora"].count(d_model, num_layers, lora_rank),
        "adapters": _METHODS["adapter"].count(d_model, num_layers, adapter_bottleneck),
        "prefix": _METHODS["prefix"].count(d_model, num_layers, prefix_length),
        "prompt": _METHODS["prompt"].count(d_model, num_layers, prompt_length),
    }
    return {name: {"params": count, "ratio": count / full} for name, count in params.items()}


def analyze_peft_efficiency(
    model_config: Mapping[str, int], method: str, method_config: Mapping[str, int]
) -> Efficiency:
    """What a method trains on a model, and the memory that training takes.

    model_config: d_model and n_layers; n_heads if they are to be checked. d_ff adds the two
        matrices of each feed-forward layer to the model, 2 L d d_ff, and vocab_size the
        embeddings, V d; without them the model is its attentions, as in `compare_peft_methods`.
    method: lora, adapter, prefix or prompt.
    method_config: its rank, bottleneck or length; left out, as in `compare_peft_methods`.

    All sizes may also be spelt as that function spells them. total_params is the model without
    the method, efficiency_ratio = trainable / total, and memory_estimate is in bytes: everything
    in float32, the model, and for each trained parameter its value, its gradient and AdamW's two
    moments, 4 total + 16 trainable. Activations come on top.

    Raises:
        ValueError: an unknown method or key, a size that is missing or below 1, or heads that do
            not divide d_model.
    """
    if method not in _METHODS:
        raise unknown("method", method, _METHODS)
    d, layers, total = _model(model_config)
    size, default, count = _METHODS[method].size, _METHODS[method].default, _METHODS[method].count
    _check_keys("method_config", method_config, size)
    trainable = count(d, layers, _one_of(method_config, size, default))
    return {
        "trainable_params": trainable,
        "total_params": total,
        "efficiency_ratio": trainable / total,
        # float32: 4 bytes each for the model; value, gradient, two moments for what is trained
        "memory_estimate": 4 * total + 16 * trainable,
    }


def _model(config: Mapping[str, int]) -> tuple[int, int, int]:
    """(d, L, all parameters) of a model."""
    _check_keys("model_config", config, ("d_model", *_LAYERS, *_HEADS, "d_ff", "vocab_size"))
    d, layers = _one_of(config, ("d_model",)), _one_of(config, _LAYERS)
    check_heads(d, _one_of(config, _HEADS, 1))
    # 4 L d² + 2 L d d_ff + V d
    total = 4 * layers * d**2 + 2 * layers * d * config.get("d_ff", 0)
    return d, layers, total + config.get("vocab_size", 0) * d


def _check_keys(what: str, config: Mapping[str, int], known: Sequence[str]) -> None:
    for key in config:
        if key not in known:
            raise unknown(f"key of {what}", key, known)
    check_sizes(**config)


def _one_of(config: Mapping[str, int], spellings: Sequence[str], default: int | None = None) -> int:
    """The size under whichever of its names is there."""
    for name in spellings:
        if name in config:
            return config[name]
    if default is None:
        raise ValueError(f"model_config: {' or '.join(spellings)} is missing")
    return default
