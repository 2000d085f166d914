"""The course chapter's classes, written anew from its formulas, beside the reference.

`Plain...` are the chapter's classes in few words. Both get the same seed and the same arrays, of
random shapes. Starts, outputs and merged weights are equal to the bit, gradients up to the order in
which sums over a batch are taken.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft import reference
from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import (
    Adapter,
    LoRALayer,
    LoRALinear,
    LoRAManager,
    PrefixTuning,
    PromptTuning,
    QLoRALayer,
    apply_lora_to_attention,
    compare_peft_methods,
    dequantize_4bit,
    lora_backward,
    quantize_to_4bit,
)

# ---------- the chapter's classes from its formulas ----------


class PlainLoRA:
    """h = W x + s B A x, with A from N(0, 0.01²), B zero, s = alpha / rank."""

    def __init__(self, n: int, m: int, rank: int = 8, alpha: float = 16.0) -> None:
        self.A = 0.01 * np.random.randn(rank, n)  # noqa: NPY002  # as the chapter draws
        self.B: Array = np.zeros((m, rank))
        self.s = alpha / rank

    def forward(self, x: Array, W: Array) -> Array:
        self.x, self.W = x, W
        return x @ W.T + self.s * (x @ self.A.T @ self.B.T)

    def backward(self, g: Array) -> Array:
        flat_x = self.x.reshape(-1, self.x.shape[-1])
        flat_g = (self.s * g).reshape(-1, g.shape[-1])
        self.dB = flat_g.T @ (self.x @ self.A.T).reshape(len(flat_x), -1)
        self.dA = (flat_g @ self.B).T @ flat_x
        return g @ self.W + self.s * g @ self.B @ self.A

    def merged(self, W: Array) -> Array:
        return W + self.s * (self.B @ self.A)


class PlainAdapter:
    """h + f(h D) U, both matrices from N(0, 0.01²), f ReLU or the tanh form of GELU."""

    def __init__(self, d: int, m: int = 64, f: str = "relu") -> None:
        self.D = 0.01 * np.random.randn(d, m)  # noqa: NPY002  # as the chapter draws
        self.U = 0.01 * np.random.randn(m, d)  # noqa: NPY002  # as the chapter draws
        self.f = f

    def activation(self, x: Array) -> Array:
        if self.f == "relu":
            return np.maximum(x, 0)
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        gelu: Array = 0.5 * x * (1 + np.tanh(inner))
        return gelu

    def forward(self, x: Array) -> Array:
        self.x, self.down = x, x @ self.D
        return x + self.activation(self.down) @ self.U

    def backward(self, g: Array) -> Array:
        """With ReLU's slope."""
        d, m = self.D.shape
        d_down = g @ self.U.T * (self.down > 0)
        self.dU = self.activation(self.down).reshape(-1, m).T @ g.reshape(-1, d)
        self.dD = self.x.reshape(-1, d).T @ d_down.reshape(-1, m)
        return g + d_down @ self.D.T


class PlainPrompt:
    """[P; x] along the tokens, P from N(0, 0.01²) or from rows of a vocabulary."""

    def __init__(self, d: int, n: int = 20, vocabulary: Array | None = None) -> None:
        if vocabulary is None:
            self.P: Array = 0.01 * np.random.randn(n, d)  # noqa: NPY002  # as the chapter draws
        else:
            chosen = np.random.choice(len(vocabulary), n)  # noqa: NPY002  # as the chapter draws
            self.P = vocabulary[chosen]

    def forward(self, x: Array) -> Array:
        return np.stack([np.vstack([self.P, text]) for text in x])

    def backward(self, g: Array) -> Array:
        self.dP = g[:, : len(self.P)].sum(axis=0)
        return g[:, len(self.P) :]


def plain_quantization(W: Array) -> tuple[Array, float, float]:
    """Codes 0 to 15 of s = (max - min) / 15, and the code of 0."""
    s = (W.max() - W.min()) / 15
    z = np.round(-W.min() / s)
    return np.clip(np.round(W / s) + z, 0, 15), float(s), float(z)


# ---------- both on the same arrays ----------

SIZES = st.integers(1, 7)
BATCHES = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)


def start(seed: int) -> np.random.Generator:
    """Start NumPy's global generator, and return another one for the data."""
    np.random.seed(seed)  # noqa: NPY002  # the chapter's way
    return np.random.default_rng(seed)


@given(SEEDS, BATCHES, SIZES, SIZES, SIZES, st.floats(0.1, 64), st.booleans())
def test_lora_is_the_chapters(
    seed: int, batch: tuple[int, ...], n: int, m: int, rank: int, alpha: float, biased: bool
) -> None:
    rng = start(seed)
    W, bias = rng.standard_normal((m, n)), rng.standard_normal(m) if biased else None
    ours = LoRALayer(n, m, rank, alpha)
    linear = LoRALinear(W, bias, rank, alpha)
    start(seed)
    for layer in (ours, linear.lora):
        plain = PlainLoRA(n, m, rank, alpha)
        assert (layer.A == plain.A).all()
        assert (layer.B == plain.B).all()
        layer.B = plain.B = rng.standard_normal((m, rank))
        x, g = rng.standard_normal((*batch, n)), rng.standard_normal((*batch, m))
        y, dx = plain.forward(x, W), plain.backward(g)
        if layer is ours:
            assert (ours.forward(x, W) == y).all()
            assert (ours.backward(g) == dx).all()
            assert (ours.merge(W) == plain.merged(W)).all()
            assert (ours.merge_weights(W) == plain.merged(W)).all()
        else:
            assert (linear.forward(x) == (y if bias is None else y + bias)).all()
            assert (linear.backward(g) == dx).all()
            assert (linear.merge()[0] == plain.merged(W)).all()
            assert linear.merge()[1] is bias
            assert [a is b for a, b in zip(linear.parameters(), layer.parameters(), strict=True)]
        dA, dB, low = lora_backward(g, x, plain.A, plain.B, plain.s)
        for found, expected in zip(
            (*layer.gradients(), dA, dB, low + g @ W),
            (plain.dA, plain.dB, plain.dA, plain.dB, dx),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
        assert layer.num_parameters() == rank * (n + m)
        assert layer.compression_ratio() == rank * (n + m) / (n * m)
        layer.zero_grad()
        assert not any(grad.any() for grad in layer.gradients())


@given(SEEDS, BATCHES, SIZES, SIZES)
def test_an_adapter_is_the_chapters(seed: int, batch: tuple[int, ...], d: int, m: int) -> None:
    rng = start(seed)
    ours = Adapter(d, m)
    start(seed)
    plain = PlainAdapter(d, m)
    x, g = rng.standard_normal((*batch, d)), rng.standard_normal((*batch, d))
    assert (ours.forward(x) == plain.forward(x)).all()
    assert (ours.backward(g) == plain.backward(g)).all()
    for found, expected in zip(
        (*ours.parameters(), *ours.gradients()), (plain.D, plain.U, plain.dD, plain.dU), strict=True
    ):
        assert (found == expected).all()
    assert ours.num_parameters() == 2 * d * m


@given(SEEDS, SIZES, SIZES)
def test_the_chapters_gelu_is_gelu_tanh(seed: int, d: int, m: int) -> None:
    rng = start(seed)
    ours = Adapter(d, m, "gelu_tanh")
    start(seed)
    plain, x = PlainAdapter(d, m, "gelu"), rng.standard_normal((3, d))
    plain.D = ours.W_down = rng.standard_normal((d, m))
    np.testing.assert_allclose(ours.forward(x), plain.forward(x), rtol=1e-12, atol=1e-14)


@given(SEEDS, SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_a_prompt_is_the_chapters(
    seed: int, batch: int, length: int, d: int, n: int, from_vocabulary: bool
) -> None:
    rng = start(seed)
    vocabulary = rng.standard_normal((9, d)) if from_vocabulary else None
    ours = PromptTuning(d, n, vocabulary)
    start(seed)
    plain = PlainPrompt(d, n, vocabulary)
    x, g = rng.standard_normal((batch, length, d)), rng.standard_normal((batch, n + length, d))
    assert (ours.prompt == plain.P).all()
    assert (ours.forward(x) == plain.forward(x)).all()
    assert (ours.forward(input_embeds=x) == plain.forward(x)).all()
    assert (ours.backward(g) == plain.backward(g)).all()
    assert (ours.prompt_grad == plain.dP).all()
    assert ours.parameters()[0] is ours.prompt
    assert ours.num_parameters() == n * d


@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_a_prefix_is_the_chapters(
    seed: int, layers: int, heads: int, size: int, length: int
) -> None:
    start(seed)
    ours = PrefixTuning(layers, heads, size, length)
    start(seed)
    shape = (layers, 2, length, heads, size)
    prefix = 0.01 * np.random.randn(*shape)  # noqa: NPY002  # as the chapter draws
    assert (ours.parameters()[0] == prefix).all()
    for layer in range(layers):
        keys, values = ours.get_prefix(layer)
        assert (keys == prefix[layer, 0]).all()
        assert (values == prefix[layer, 1]).all()
    assert ours.num_parameters() == prefix.size


@given(SEEDS, BATCHES, st.integers(2, 7), SIZES, SIZES)
def test_lora_on_4_bits_is_the_chapters(
    seed: int, batch: tuple[int, ...], n: int, m: int, rank: int
) -> None:
    rng = start(seed)
    W, x = rng.standard_normal((m, n)), rng.standard_normal((*batch, n))
    codes, s, z = quantize_to_4bit(W)
    expected_codes, expected_s, expected_z = plain_quantization(W)
    assert (codes == expected_codes).all()
    assert (s, z) == (expected_s, expected_z)
    back = s * (expected_codes - z)
    assert (dequantize_4bit(codes, s, z) == back).all()
    ours = QLoRALayer(codes, s, z, rank)
    start(seed)
    plain = PlainLoRA(n, m, rank)
    ours.lora.B = plain.B = rng.standard_normal((m, rank))
    assert (ours.forward(x) == plain.forward(x, back)).all()


@given(SEEDS, SIZES, SIZES)
def test_lora_on_attention_is_the_chapters(seed: int, d: int, rank: int) -> None:
    rng = start(seed)
    weights = dict(zip("qkvo", rng.standard_normal((4, d, d)), strict=True))
    wq, wk, wv, wo = weights.values()
    layers = apply_lora_to_attention(wq, wk, wv, wo, rank, 4.0, ["q", "v"])
    start(seed)
    for name, layer in layers.items():
        if name in "qv":
            assert isinstance(layer, LoRALinear)
            assert (layer.lora.A == PlainLoRA(d, d, rank).A).all()
            assert layer.lora.scaling == 4.0 / rank
            assert layer.weight is weights[name]
        else:
            assert layer is weights[name]
    by_default = apply_lora_to_attention(wq, wk, wv, wo)
    assert [isinstance(layer, LoRALinear) for layer in by_default.values()] == [1, 0, 1, 0]


@given(SIZES, SIZES, SIZES, SIZES, SIZES, SIZES)
def test_the_counts_are_the_chapters(
    d: int, layers: int, rank: int, m: int, prefix: int, prompt: int
) -> None:
    full = 4 * layers * d * d
    params = {
        "full_fine_tuning": full,
        "lora": layers * 2 * rank * 2 * d,
        "adapters": layers * 2 * 2 * d * m,
        "prefix_tuning": layers * 2 * prefix * d,
        "prompt_tuning": prompt * d,
    }
    found = compare_peft_methods(d, layers, 1, rank, m, prefix, prompt)
    assert {name: count["params"] for name, count in found.items()} == params
    assert {name: count["ratio"] for name, count in found.items()} == {
        name: count / full for name, count in params.items()
    }


# ---------- the chapter's names ----------

Default = object
NEEDED: Default = inspect.Parameter.empty

# Every function and method with its arguments in order, and their defaults.
SIGNATURES: dict[str, dict[str, Default]] = {
    "LoRALayer": {
        "in_features": NEEDED,
        "out_features": NEEDED,
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
    },
    "LoRALayer.forward": {"x": NEEDED, "W": NEEDED},
    "LoRALayer.backward": {"grad_output": NEEDED},
    "LoRALayer.merge": {"W": NEEDED},
    "LoRALayer.merge_weights": {"W": NEEDED},
    "LoRALayer.parameters": {},
    "LoRALayer.gradients": {},
    "LoRALayer.zero_grad": {},
    "LoRALayer.num_parameters": {},
    "LoRALayer.compression_ratio": {},
    "lora_backward": {
        "grad_output": NEEDED,
        "x": NEEDED,
        "A": NEEDED,
        "B": NEEDED,
        "scaling": NEEDED,
    },
    "LoRALinear": {
        "weight": NEEDED,
        "bias": None,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_dropout": 0.0,
    },
    "LoRALinear.forward": {"x": NEEDED},
    "LoRALinear.backward": {"grad_output": NEEDED},
    "LoRALinear.merge": {},
    "LoRALinear.parameters": {},
    "LoRALinear.gradients": {},
    "LoRALinear.zero_grad": {},
    "Adapter": {"d_model": NEEDED, "bottleneck_dim": 64, "activation": "relu"},
    "Adapter.forward": {"x": NEEDED},
    "Adapter.backward": {"grad_output": NEEDED},
    "Adapter.parameters": {},
    "Adapter.gradients": {},
    "Adapter.num_parameters": {},
    "PrefixTuning": {
        "num_layers": NEEDED,
        "num_heads": NEEDED,
        "d_head": NEEDED,
        "prefix_length": 10,
    },
    "PrefixTuning.get_prefix": {"layer_idx": NEEDED},
    "PrefixTuning.parameters": {},
    "PrefixTuning.num_parameters": {},
    "PromptTuning": {"d_model": NEEDED, "prompt_length": 20, "init_from_vocab": None},
    "PromptTuning.backward": {"grad_output": NEEDED},
    "PromptTuning.parameters": {},
    "PromptTuning.num_parameters": {},
    "count_trainable_parameters": {"model_params": NEEDED},
    "count_frozen_parameters": {"frozen_params": NEEDED},
    "compute_parameter_efficiency": {"trainable": NEEDED, "total": NEEDED},
    "apply_lora_to_attention": {
        "wq": NEEDED,
        "wk": NEEDED,
        "wv": NEEDED,
        "wo": NEEDED,
        "rank": 8,
        "alpha": 16.0,
        "target_modules": None,
    },
    "compare_peft_methods": {
        "d_model": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "lora_rank": 8,
        "adapter_bottleneck": 64,
        "prefix_length": 10,
        "prompt_length": 20,
    },
    "LoRAMultiHeadAttention": {
        "d_model": NEEDED,
        "n_heads": NEEDED,
        "rank": 8,
        "target_modules": ("q", "v"),
    },
    "LoRAMultiHeadAttention.forward": {"x": NEEDED, "mask": None},
    "LoRAMultiHeadAttention.merge_lora": {},
    "LoRAMultiHeadAttention.count_trainable_params": {},
    "analyze_peft_efficiency": {
        "model_config": NEEDED,
        "method": NEEDED,
        "method_config": NEEDED,
    },
    "LoRAManager": {"base_model": NEEDED},
    "LoRAManager.add_adapter": {"name": NEEDED, "lora_weights": NEEDED},
    "LoRAManager.switch_adapter": {"name": NEEDED},
    "LoRAManager.merge_adapter": {"name": NEEDED},
    "LoRAManager.combine_adapters": {"names": NEEDED, "weights": NEEDED},
    "quantize_to_4bit": {"weight": NEEDED},
    "dequantize_4bit": {"quantized": NEEDED, "scale": NEEDED, "zero_point": NEEDED},
    "QLoRALayer": {"weight_4bit": NEEDED, "scale": NEEDED, "zero_point": NEEDED, "rank": 8},
    "QLoRALayer.forward": {"x": NEEDED},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_chapters_arguments_come_first_with_its_defaults(name: str) -> None:
    found: Any = reference
    for part in name.split("."):
        found = getattr(found, part)
    parameters = dict(inspect.signature(found).parameters)
    parameters.pop("self", None)
    expected = SIGNATURES[name]
    assert list(parameters)[: len(expected)] == list(expected)
    assert {key: parameters[key].default for key in expected} == expected
    further = list(parameters.values())[len(expected) :]
    assert all(parameter.default is not NEEDED for parameter in further)


ATTRIBUTES: dict[str, dict[str, object]] = {
    "LoRALayer": {
        "in_features": 5,
        "out_features": 4,
        "rank": 2,
        "alpha": 3.0,
        "scaling": 1.5,
        "dropout_prob": 0.1,
        "A": (2, 5),
        "B": (4, 2),
        "A_grad": (2, 5),
        "B_grad": (4, 2),
        "cache": {},
    },
    "LoRALinear": {"weight": (4, 5), "bias": (4,), "in_features": 5, "out_features": 4},
    "Adapter": {
        "d_model": 5,
        "bottleneck_dim": 3,
        "activation": "relu",
        "W_down": (5, 3),
        "W_up": (3, 5),
        "W_down_grad": (5, 3),
        "W_up_grad": (3, 5),
        "cache": {},
    },
    "PrefixTuning": {
        "num_layers": 3,
        "num_heads": 2,
        "d_head": 4,
        "prefix_length": 10,
        "prefix": (3, 2, 10, 2, 4),
        "prefix_grad": (3, 2, 10, 2, 4),
    },
    "PromptTuning": {"d_model": 5, "prompt_length": 7, "prompt": (7, 5), "prompt_grad": (7, 5)},
    "QLoRALayer": {"weight_4bit": (4, 5), "scale": 0.5, "zero_point": 8.0, "rank": 2},
    "LoRAManager": {"base_model": {"q": (4, 5)}, "adapters": {}},
}
OBJECTS: dict[str, Callable[[], object]] = {
    "LoRALayer": lambda: LoRALayer(5, 4, 2, 3.0, 0.1),
    "LoRALinear": lambda: LoRALinear(np.ones((4, 5)), np.ones(4), 2, 3.0, 0.1),
    "Adapter": lambda: Adapter(5, 3),
    "PrefixTuning": lambda: PrefixTuning(3, 2, 4),
    "PromptTuning": lambda: PromptTuning(5, 7),
    "QLoRALayer": lambda: QLoRALayer(np.ones((4, 5), np.uint8), 0.5, 8.0, 2),
    "LoRAManager": lambda: LoRAManager({"q": np.ones((4, 5))}),
}


def shaped(value: object) -> object:
    match value:
        case np.ndarray():
            return value.shape
        case dict():
            return {key: shaped(part) for key, part in value.items()}
    return value


@pytest.mark.parametrize("name", OBJECTS)
def test_the_chapters_attributes_are_there(name: str) -> None:
    made, expected = OBJECTS[name](), ATTRIBUTES[name]
    assert {key: shaped(getattr(made, key)) for key in expected} == expected
