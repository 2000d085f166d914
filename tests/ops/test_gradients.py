"""Every differentiable op, in a table: its gradients, its dtypes, its memory layouts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import pytest

from tinygrad_peft import ops
from tinygrad_peft.arrays import Array
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A function of tensors, the shapes it is checked on, and the range of its inputs."""

    op: str
    function: Callable[..., Tensor]
    cases: tuple[tuple[Shape, ...], ...]
    low: float = -2.0
    high: float = 2.0


def one(*shapes: Shape) -> tuple[tuple[Shape, ...], ...]:
    """Make the cases of a function of one input."""
    return tuple((shape,) for shape in shapes)


ANY = one((2, 3), (), (1,), (5,), (0, 3), (2, 3, 4))
PAIRS: tuple[tuple[Shape, ...], ...] = (
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((), (2, 3)),
    ((2, 3), ()),
    ((), ()),
    ((1,), (4,)),
    ((0, 3), (3,)),
    ((1,), (0,)),
    ((2, 3, 1), (4,)),
)
PRODUCTS: tuple[tuple[Shape, ...], ...] = (
    ((2, 3), (3, 4)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (3,)),
    ((2, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((1, 1), (1, 1)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
)
IDS = np.array([[1, 0, 1], [3, 1, 1]])
KEEP = np.array([[True, False, True], [True, True, False]])
ANGLES = np.array([[0.0, 0.0], [0.3, 1.1], [0.6, 2.2]])  # (T, D/2)
ROW_ANGLES = np.stack([ANGLES, ANGLES + 0.7])  # (B, T, D/2)
TARGETS = np.array([2, -100, 0, 4])
PADDING = np.array([[True, True, True, False], [True, False, True, True]])  # (B, S)
PREFIX_PADDING = np.pad(PADDING, ((0, 0), (3, 0)), constant_values=True)  # (B, P + S)
Q, KV, GROUPED = (2, 4, 4, 2), (2, 4, 2, 2), (2, 4, 4, 2)  # (B, T, H, D), (B, S, K, D)
DROP = np.random.default_rng(5).random((2, 4, 4, 4)) < 0.7  # (B, H, T, S)
DROP_PREFIX = np.random.default_rng(6).random((2, 4, 4, 7)) < 0.7  # (B, H, T, P + S)


def with_prefix(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    return F.attention(
        q, k, v, prefix=(pk, pv), causal=True, keys=PREFIX_PADDING, keep=DROP_PREFIX, rate=0.3
    )


def packed_with_prefix(x: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    return F.attention_packed(
        x,
        prefix=(pk, pv),
        heads=4,
        causal=True,
        keys=PREFIX_PADDING,
        keep=DROP_PREFIX,
        rate=0.3,
    )


TABLE = [
    Row("add", lambda a, b: a + b, PAIRS),
    Row("sub", lambda a, b: a - b, PAIRS),
    Row("mul", lambda a, b: a * b, PAIRS),
    Row("div", lambda a, b: a / b, PAIRS, 0.5, 2.0),
    Row("maximum", F.maximum, PAIRS),
    Row("neg", lambda a: -a, ANY),
    Row("power", lambda a: a**2, ANY),
    Row("power", lambda a: a**3.0, ANY),
    Row("power", lambda a: a**-1.5, ANY, 0.5, 2.0),
    Row("power", lambda a: a**0, ANY),
    Row("exp", lambda a: a.exp(), ANY),
    Row("log", lambda a: a.log(), ANY, 0.5, 2.0),
    Row("sqrt", lambda a: a.sqrt(), ANY, 0.5, 2.0),
    Row("tanh", lambda a: a.tanh(), ANY),
    Row("erf", F.erf, ANY),
    Row("matmul", lambda a, b: a @ b, PRODUCTS),
    Row("linear", F.linear, (((2, 3), (4, 3), (4,)), ((3,), (4, 3), (4,)))),
    Row("linear", F.linear, (((2, 4, 3), (1, 3), (1,)), ((0, 3), (4, 3), (4,)))),
    Row("linear", F.linear, (((2, 3), (4, 3)), ((2, 0, 3), (4, 3)), ((1, 1), (1, 1)))),
    Row("gelu", F.gelu, ANY, -4, 4),
    Row("gelu_tanh", F.gelu_tanh, ANY, -4, 4),
    Row("silu", F.silu, ANY, -4, 4),
    Row("relu", F.relu, ANY),
    Row(
        "swiglu", F.swiglu, (((2, 3), (2, 3)), ((5,), (5,)), ((2, 3, 4), (2, 3, 4)), ((0, 3),) * 2)
    ),
    Row("softmax", F.softmax, one((2, 3), (4,), (2, 3, 4), (2, 1), (0, 3), (3, 0))),
    Row("softmax", lambda a: F.softmax(a, axis=0), one((2, 3), (2, 3, 4))),
    Row("log_softmax", F.log_softmax, one((2, 3), (4,), (2, 3, 4), (2, 1), (0, 3))),
    Row("log_softmax", lambda a: F.log_softmax(a, axis=1), one((2, 3), (2, 3, 4))),
    Row(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, w, b, 1e-3),
        (((2, 5), (5,), (5,)), ((5,), (5,), (5,)), ((2, 3, 4), (4,), (4,)), ((0, 4), (4,), (4,))),
    ),
    Row(
        "layer_norm",
        lambda x, w: F.layer_norm(x, w, None, 1e-5),
        (((2, 5), (5,)), ((2, 1), (1,))),
    ),
    Row(
        "rms_norm",
        lambda x, w: F.rms_norm(x, w, 1e-5),
        (((2, 5), (5,)), ((5,), (5,)), ((2, 3, 4), (4,)), ((0, 4), (4,)), ((2, 1), (1,))),
    ),
    Row("embedding", lambda w: F.embedding(w, IDS), one((4, 3), (4, 1))),
    Row("embedding", lambda w: F.embedding(w, IDS[:0]), one((4, 3))),
    Row("embedding", lambda w: F.embedding(w, np.array(2)), one((4, 3))),
    Row("dropout", lambda x: F.dropout(x, KEEP, 0.25), one((2, 3))),
    Row("dropout", lambda x: F.dropout(x, np.array(True), 0.25), one(())),
    Row("rotary", lambda x: F.rotary(x, np.cos(ANGLES), np.sin(ANGLES)), one((2, 3, 2, 4))),
    Row("rotary", lambda x: F.rotary(x, np.cos(ROW_ANGLES), np.sin(ROW_ANGLES)), one((2, 3, 2, 4))),
    Row("rotary", lambda x: F.rotary(x, np.cos(ANGLES), np.sin(ANGLES)), one((0, 3, 2, 4))),
    Row("attention", lambda q, k, v: F.attention(q, k, v, causal=False), ((Q, Q, Q), (Q, KV, KV))),
    Row("attention", lambda q, k, v: F.attention(q, k, v, causal=True), ((Q, Q, Q), (Q, KV, KV))),
    Row(
        "attention",
        lambda q, k, v: F.attention(q, k, v, causal=True),
        (
            ((2, 1, 4, 2), KV, KV),  # the last of the tokens alone, as with a cache
            ((2, 3, 4, 2), KV, KV),
            ((1, 1, 1, 1),) * 3,
            ((0, 4, 4, 2), (0, 4, 2, 2), (0, 4, 2, 2)),
            ((2, 0, 4, 2), KV, KV),
            ((2, 0, 4, 2), (2, 0, 2, 2), (2, 0, 2, 2)),
        ),
    ),
    Row(
        "attention",
        lambda q, k, v: F.attention(q, k, v, causal=False, keys=PADDING),
        ((Q, Q, Q), (Q, KV, KV), ((2, 3, 4, 2), KV, KV)),
    ),
    Row(
        "attention",
        lambda q, k, v: F.attention(q, k, v, causal=True, keys=PADDING, keep=DROP, rate=0.3),
        ((Q, Q, Q), (Q, KV, KV)),
    ),
    Row(
        "attention",
        with_prefix,
        (
            (Q, Q, Q, (3, 4, 2), (3, 4, 2)),
            (GROUPED, KV, KV, (3, 2, 2), (3, 2, 2)),
            (GROUPED, KV, KV, (2, 3, 2, 2), (2, 3, 2, 2)),
        ),
    ),
    Row(
        "attention_packed",
        packed_with_prefix,
        (((2, 4, 24), (3, 4, 2), (3, 4, 2)), ((2, 4, 24), (2, 3, 4, 2), (2, 3, 4, 2))),
    ),
    Row(
        "attention_packed",
        lambda x: F.attention_packed(x, heads=2, causal=True),
        one((2, 3, 12), (1, 1, 6), (0, 3, 12), (2, 0, 12)),
    ),
    Row(
        "attention_packed",
        lambda x: F.attention_packed(x, heads=4, causal=False, keys=PADDING, keep=DROP, rate=0.3),
        one((2, 4, 24)),
    ),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGETS), one((4, 5))),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGETS, label_smoothing=0.2), one((4, 5))),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGETS.reshape(2, 2)), one((2, 2, 5))),
    Row("cross_entropy", lambda x: F.cross_entropy(x, np.array(1)), one((3,))),
    Row("cross_entropy", lambda x: F.cross_entropy(x, np.array([0])), one((1, 1))),
    Row(
        "linear_cross_entropy",
        lambda x, w, b: F.linear_cross_entropy(x, w, b, TARGETS, label_smoothing=0.1),
        (((4, 3), (5, 3), (5,)),),
    ),
    Row(
        "linear_cross_entropy",
        lambda x, w: F.linear_cross_entropy(x, w, None, TARGETS.reshape(2, 2)),
        (((2, 2, 3), (5, 3)), ((2, 2, 1), (5, 1))),
    ),
    Row("reshape", lambda a: a.reshape(3, -1), one((2, 3), (6, 2), (3,), (3, 2, 2))),
    Row("reshape", lambda a: a.reshape(0, 5), one((0, 3), (2, 0))),
    Row("reshape", lambda a: a.reshape(), one((), (1,), (1, 1))),
    Row("transpose", lambda a: a.transpose(), ANY),
    Row("transpose", lambda a: a.transpose(1, 2, 0), one((2, 3, 4), (0, 3, 1))),
    Row("transpose", lambda a: a.transpose(-1, 0, 1), one((2, 3, 4))),
    Row(
        "broadcast_to", lambda a: F.broadcast_to(a, (4, 2, 3)), one((3,), (2, 3), (2, 1), (), (1,))
    ),
    Row("broadcast_to", lambda a: F.broadcast_to(a, (0, 3)), one((3,), (1, 3), (1,))),
    Row(
        "concatenate",
        lambda *t: F.concatenate(t),
        (((2, 3), (1, 3), (0, 3)), ((2,),), ((2, 1), (2, 1))),
    ),
    Row("concatenate", lambda *t: F.concatenate(t, axis=-1), (((2, 3), (2, 1)),)),
    Row("concatenate", lambda *t: F.concatenate(t, axis=1), (((2, 3, 2), (2, 1, 2)),)),
    Row("getitem", lambda a: a[1], one((2, 3), (2,))),
    Row("getitem", lambda a: a[..., ::2], one((2, 3), (5,))),
    Row("getitem", lambda a: a[:, None, -1], one((2, 3))),
    Row("getitem", lambda a: a[::-1], one((2, 3), (0, 3))),
    Row("getitem", lambda a: a[()], one((), (2,))),
    Row("getitem", lambda a: a[np.array([0, 1, 0])], one((2, 3), (2,))),
    Row("getitem", lambda a: a[[1, 1]], one((2, 3))),
    Row("getitem", lambda a: a[:, np.array([[0, 2], [2, 2]])], one((2, 3))),
    Row("getitem", lambda a: a[KEEP], one((2, 3), (2, 3, 2))),
    Row("getitem", lambda a: a[np.arange(2), np.array([2, 0])], one((2, 3))),
    Row("getitem", lambda a: a[np.int64(1)], one((2, 3))),
    Row("where", lambda a, b: F.where(KEEP, a, b), (((2, 3),) * 2, ((3,), ()), ((2, 1), (1, 3)))),
    Row("sum", lambda a: a.sum(), ANY),
    Row("sum", lambda a: a.sum(axis=0), one((2, 3), (4,), (0, 3), (2, 3, 4))),
    Row("sum", lambda a: a.sum(axis=(0, -1)), one((2, 3), (2, 3, 4))),
    Row("sum", lambda a: a.sum(axis=-1, keepdims=True), one((2, 3), (3, 0))),
    Row("mean", lambda a: a.mean(), one((2, 3), (), (1,), (2, 3, 4))),
    Row("mean", lambda a: a.mean(axis=1), one((2, 3), (2, 3, 4), (0, 3))),
    Row("mean", lambda a: a.mean(axis=(0, -1), keepdims=True), one((2, 3), (2, 3, 4))),
    Row("max", lambda a: F.max(a, 0), one((2, 3), (4,), (1, 2), (2, 0))),
    Row("max", lambda a: F.max(a, -1, keepdims=True), one((2, 3), (2, 3, 4))),
]
CASES = [
    pytest.param(row, shapes, id=f"{row.op}-{i}-{'x'.join(map(str, shapes))}".replace(" ", ""))
    for i, row in enumerate(TABLE)
    for shapes in row.cases
]


def fortran(x: Array) -> Array:
    return np.asfortranarray(x)


def strided(x: Array) -> Array:
    """Return the same values as a view with gaps and negative strides."""
    wide = np.full(tuple(2 * n for n in x.shape), np.nan, x.dtype)
    index: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, -2) for _ in x.shape))
    view: Array = wide[index]
    view[...] = x
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": fortran,
    "strided": strided,
}


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def draw(row: Row, shapes: tuple[Shape, ...]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.uniform(row.low, row.high, shape)) for shape in shapes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_gradients_agree_with_differences(row: Row, shapes: tuple[Shape, ...], layout: str) -> None:
    arrange = LAYOUTS[layout]
    inputs = [Tensor(arrange(x), requires_grad=True) for x in draw(row, shapes)]

    assert check_gradients(row.function, inputs) < 1e-6


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_each_gradient_is_the_same_alone_as_with_the_others(
    row: Row, shapes: tuple[Shape, ...]
) -> None:
    arrays = draw(row, shapes)
    together = [Tensor(x, requires_grad=True) for x in arrays]
    weights = np.random.default_rng(1).standard_normal(row.function(*together).shape)
    row.function(*together).backward(weights)

    for i, expected in enumerate(together):
        alone = [Tensor(x, requires_grad=i == j) for j, x in enumerate(arrays)]
        row.function(*alone).backward(weights)
        np.testing.assert_allclose(grad_of(alone[i]), grad_of(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_values_and_gradients_are_arrays_of_the_inputs_dtype_and_shape(
    row: Row, shapes: tuple[Shape, ...], dtype: type[np.floating]
) -> None:
    inputs = [Tensor(x.astype(dtype), requires_grad=True) for x in draw(row, shapes)]
    output = row.function(*inputs)
    assert type(output.data) is np.ndarray
    assert output.dtype == dtype
    output.backward(np.ones(output.shape, dtype))

    for tensor in inputs:
        assert type(tensor.grad) is np.ndarray
        assert tensor.grad.dtype == dtype
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.flags.writeable


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_float32_matches_float64_after_rounding(row: Row, shapes: tuple[Shape, ...]) -> None:
    exact = [Tensor(x.astype(np.float32).astype(np.float64)) for x in draw(row, shapes)]
    single = [Tensor(x.data.astype(np.float32)) for x in exact]

    np.testing.assert_allclose(
        row.function(*single).data, row.function(*exact).data, rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_no_op_writes_to_its_inputs_or_to_its_incoming_gradient(
    row: Row, shapes: tuple[Shape, ...]
) -> None:
    inputs = [Tensor(x, requires_grad=True) for x in draw(row, shapes)]
    for tensor in inputs:
        tensor.data.flags.writeable = False
    output = row.function(*inputs)
    seed = np.ones(output.shape)
    seed.flags.writeable = False
    output.backward(seed)

    for tensor, before in zip(inputs, draw(row, shapes), strict=True):
        np.testing.assert_array_equal(tensor.data, before)


@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_gradients_share_memory_with_nothing(row: Row, shapes: tuple[Shape, ...]) -> None:
    inputs = [Tensor(x, requires_grad=True) for x in draw(row, shapes)]
    output = row.function(*inputs)
    seed = np.ones(output.shape)
    output.backward(seed)
    grads = [t.grad for t in inputs if t.grad is not None]

    assert len(grads) == len(inputs)
    for i, grad in enumerate(grads):
        others = [seed, output.data, *(t.data for t in inputs), *grads[:i]]
        assert not any(np.shares_memory(grad, other) for other in others)


def test_every_differentiable_op_has_a_row() -> None:
    differentiable = {
        name
        for name in ops.__all__
        if inspect.isfunction(function := getattr(ops, name))
        and inspect.signature(function).return_annotation in (ops.Result, ops.FusedResult)
    }
    others = {"FusedResult", "Index", "JointPullback", "Needs", "Pullback", "Result", "check_ids"}

    assert differentiable == {row.op for row in TABLE}
    assert set(ops.__all__) == differentiable | others
