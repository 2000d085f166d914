"""Frozen inputs cost nothing: neither memory in the graph nor matrix products."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.nn import Init, Linear, Transformer, TransformerConfig
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor

ROWS, WIDTH = 512, 256
ACTIVATION = ROWS * WIDTH * 4  # bytes


@pytest.fixture(autouse=True)
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def kept_by(function: Callable[[], Tensor]) -> float:
    """Measure the memory that lives as long as the result, its own array included: activations."""
    function()  # here NumPy allocates what it allocates once
    before, _ = tracemalloc.get_traced_memory()
    result = function()
    after, _ = tracemalloc.get_traced_memory()
    assert result.shape == (ROWS, WIDTH)
    return (after - before) / ACTIVATION


def leaf(*shape: int, trained: bool = True) -> Tensor:
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Tensor(data, requires_grad=trained)


def frozen_layers(count: int) -> list[Linear]:
    layers = [Linear(WIDTH, WIDTH, init=Init(i)) for i in range(count)]
    for layer in layers:
        layer.freeze()
    return layers


def through(layers: list[Linear], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def test_nothing_is_kept_below_the_lowest_trained_tensor() -> None:
    layers, x, vector = frozen_layers(8), leaf(ROWS, WIDTH, trained=False), leaf(WIDTH)

    assert kept_by(lambda: F.gelu(through(layers, x)) + vector) == pytest.approx(1, abs=0.1)


def test_frozen_layers_above_a_trained_tensor_keep_no_activation() -> None:
    layers, x, vector = frozen_layers(8), leaf(ROWS, WIDTH, trained=False), leaf(WIDTH)

    assert kept_by(lambda: through(layers, x + vector)) == pytest.approx(1, abs=0.1)


def test_a_trained_weight_keeps_its_input_and_no_more() -> None:
    layers, x = frozen_layers(8), leaf(ROWS, WIDTH, trained=False)
    layers[4].weight.requires_grad = True

    assert kept_by(lambda: through(layers, x)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("function", "activations"),
    [
        (lambda x, _: x + 1 - 2, 0),
        (lambda x, frozen: x * frozen, 0),  # needs the frozen tensor alone, which lives anyway
        (lambda x, _: x.reshape(-1).reshape(ROWS, WIDTH).transpose().transpose(), 0),
        (lambda x, _: x @ np.eye(WIDTH, dtype=np.float32) + 1, WIDTH / ROWS),
        (lambda x, _: x.exp() + 1, 1),
        (lambda x, _: x.tanh() + 1, 1),
        (lambda x, _: F.gelu(x) + 1, 1),
        (lambda x, _: F.softmax(x) + 1, 1),
        (lambda x, frozen: F.swiglu(x, frozen) + 1, 1),
        (lambda x, frozen: F.swiglu(frozen, x) + 1, 1),
        (lambda x, frozen: F.layer_norm(x, frozen[0], frozen[0], 1e-5), 1),
        (lambda x, frozen: F.rms_norm(x, frozen[0], 1e-5), 1),
        (lambda x, _: F.rotary(x.reshape(1, ROWS, 1, WIDTH), *angles()).reshape(ROWS, WIDTH), 0.5),
    ],
    ids=[
        *("add", "mul", "shape", "matmul", "exp", "tanh", "gelu", "softmax", "gate", "up"),
        *("layer_norm", "rms_norm", "rotary"),
    ],
)
def test_an_op_keeps_its_value_and_the_needs_of_its_pullback(
    function: Callable[[Tensor, Tensor], Tensor], activations: float
) -> None:
    x, frozen = leaf(ROWS, WIDTH), leaf(ROWS, WIDTH, trained=False)

    kept = kept_by(lambda: function(x + 0, frozen))
    assert kept - 1 == pytest.approx(activations, abs=0.15)


def angles() -> tuple[Array, Array]:
    cos = np.ones((ROWS, WIDTH // 2), np.float32)
    return cos, cos[:]


@pytest.mark.parametrize("frozen_side", ["left", "right"])
def test_a_product_keeps_the_other_side_and_not_its_own(frozen_side: str) -> None:
    x, weight = leaf(ROWS, WIDTH), leaf(WIDTH, WIDTH)
    if frozen_side == "right":
        kept = kept_by(lambda: (x + 0) @ weight.detach())  # x + 0 is not needed for its gradient
        assert kept == pytest.approx(1, abs=0.1)
    else:
        kept = kept_by(lambda: (x.detach() * 1) @ weight)
        assert kept == pytest.approx(2, abs=0.1)


CONFIG = TransformerConfig(
    vocab_size=50,
    hidden_size=WIDTH,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=2 * WIDTH,
    max_position_embeddings=64,
    packed_qkv=True,
    head="none",
)


def test_a_frozen_transformer_keeps_nothing_below_the_lowest_trained_weight() -> None:
    model = Transformer(CONFIG)
    model.freeze()
    ids = np.random.default_rng(0).integers(0, 50, (8, 64))
    vector = leaf(WIDTH)

    assert kept_by(lambda: (model(ids) + vector).reshape(ROWS, WIDTH)) == pytest.approx(1, abs=0.1)


def test_only_blocks_from_the_first_trained_one_on_keep_anything() -> None:
    ids = np.random.default_rng(0).integers(0, 50, (8, 64))

    def kept(trained: int) -> float:
        model = Transformer(CONFIG)
        model.freeze()
        next(model.get_child(f"blocks.{trained}").parameters()).requires_grad = True
        return kept_by(lambda: model(ids).reshape(ROWS, WIDTH))

    first, second, third = kept(1), kept(2), kept(3)
    assert first - second == pytest.approx(second - third, rel=0.05), "the same for each block"
    # A block: two norms, probabilities of 4 heads, qkv (3), the slope of GELU (2).
    assert second - third == pytest.approx(2 + 4 * 64 / WIDTH + 3 + 2, abs=0.3)


def test_backward_releases_the_graph_as_it_walks() -> None:
    x = leaf(ROWS, WIDTH)
    y = x
    for _ in range(20):
        y = y.tanh()
    y = y.sum()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    y.backward()
    after, peak = tracemalloc.get_traced_memory()

    assert (peak - before) / ACTIVATION < 5
    assert (after - before) / ACTIVATION == pytest.approx(1 - 20, abs=0.5), "the gradient alone"


class Counted(np.ndarray[tuple[int, ...], np.dtype[np.floating]]):
    """An array that records the shapes of its matrix products."""

    products: list[tuple[tuple[int, ...], ...]]

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, Counted):
            self.products = source.products

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,  # noqa: ANN401 - whatever NumPy computes with
        out: tuple[AnyArray, ...] | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if ufunc is np.matmul:
            self.products.append(tuple(x.shape for x in inputs))
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        if out is not None:
            settings["out"] = tuple(
                x.view(np.ndarray) if isinstance(x, Counted) else x for x in out
            )
        result = getattr(ufunc, method)(*plain, **settings)
        if not isinstance(result, np.ndarray):
            return result
        counted = result.view(Counted)
        counted.products = self.products
        return counted


@pytest.mark.parametrize(
    ("trained", "products"),
    [
        ((), [((5, 3), (3, 4))]),
        (("x",), [((5, 3), (3, 4)), ((5, 4), (4, 3))]),
        (("weight",), [((5, 3), (3, 4)), ((4, 5), (5, 3))]),
        (("bias",), [((5, 3), (3, 4))]),
        (("x", "weight"), [((5, 3), (3, 4)), ((5, 4), (4, 3)), ((4, 5), (5, 3))]),
    ],
    ids=str,
)
def test_linear_computes_no_product_for_frozen_inputs(
    trained: tuple[str, ...], products: list[tuple[tuple[int, ...], ...]]
) -> None:
    made: list[tuple[tuple[int, ...], ...]] = []
    inputs = {"x": leaf(5, 3), "weight": leaf(4, 3), "bias": leaf(4)}
    for name, tensor in inputs.items():
        counted = tensor.data.view(Counted)
        counted.products = made
        tensor.data = counted
        tensor.requires_grad = name in trained
    y = F.linear(**inputs)
    if trained:
        y.backward(np.ones((5, 4)))

    assert made == products
