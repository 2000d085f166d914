import contextvars
import copy
import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import GraphError, ShapeError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, no_grad


def leaf(*values: float, dtype: type[np.floating] = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


# ---------- making tensors, and showing them ----------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, np.float32),
        (1.5, np.float32),
        (True, np.float32),
        ([1, 2], np.float32),
        ([[0.5], [1.5]], np.float32),
        ([], np.float32),
        (np.arange(3), np.float32),
        (np.arange(3, dtype=np.uint8), np.float32),
        (np.array([True, False]), np.float32),
        (np.ones(2, np.float16), np.float32),
        (np.ones(2, np.float32), np.float32),
        (np.ones(2, np.float64), np.float64),
        (np.float64(2), np.float64),
        (np.float32(2), np.float32),
        (np.int64(2), np.float32),
    ],
)
def test_data_become_float32_unless_they_are_float64_arrays(
    data: object, dtype: type[np.floating]
) -> None:
    tensor = Tensor(data)  # type: ignore[arg-type] # the table holds all kinds

    assert type(tensor.data) is np.ndarray
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(data))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ([1j], "complex128"),
        (np.ones(2, np.complex64), "complex64"),
        ("text", "<U4"),
        (["a", "b"], "<U1"),
        ([None], "object"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    ],
)
def test_data_of_other_dtypes_are_refused(data: object, name: str) -> None:
    with pytest.raises(TypeError, match=f"expected a real dtype, got {name}"):
        Tensor(data)  # type: ignore[arg-type] # what this test is about


def test_float_arrays_are_not_copied() -> None:
    data = np.ones(3, np.float32)

    assert Tensor(data).data is data


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (Tensor([1.0, 2.5]), "Tensor([1.  2.5])"),
        (Tensor(3.0), "Tensor(3.)"),
        (Tensor([]), "Tensor([])"),
        (leaf(0.123456), "Tensor([0.1235], requires_grad=True)"),
    ],
)
def test_the_repr_shows_values_and_requires_grad(tensor: Tensor, text: str) -> None:
    assert repr(tensor) == text


def test_the_repr_of_a_large_tensor_is_short() -> None:
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 300


def test_sizes_match_the_array() -> None:
    x = Tensor(np.zeros((2, 3)))

    assert (x.shape, x.ndim, x.size, len(x)) == ((2, 3), 2, 6, 2)


def test_numpy_is_a_read_only_view() -> None:
    x = Tensor([1.0, 2.0])
    view = x.numpy()

    assert np.shares_memory(view, x.data)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5


def test_item_is_the_only_element_as_a_python_number() -> None:
    assert type(Tensor([[2.5]]).item()) is float
    assert Tensor(2.5).item() == 2.5
    with pytest.raises(ValueError, match="size 1"):
        Tensor([1.0, 2.0]).item()


def test_a_tensor_is_iterated_row_by_row_and_a_scalar_is_not() -> None:
    x = leaf(1, 2, 3)
    sum((row * i for i, row in enumerate(x)), Tensor(0.0)).backward()

    np.testing.assert_array_equal(x.grad, [0, 1, 2])
    with pytest.raises(TypeError, match="unsized"):
        list(Tensor(1.0))


def test_detach_shares_the_array_and_cuts_the_graph() -> None:
    x = leaf(1, 2)
    y = (x * 2).detach()

    assert not y.requires_grad
    (y * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


# ---------- other operands ----------


@pytest.mark.parametrize(
    "other", [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2)], ids=repr
)
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
    ],
    ids=["add", "sub", "mul", "div"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_on_either_side_takes_the_tensors_dtype(
    function: Callable[[object, object], Tensor], other: object, dtype: type[np.floating]
) -> None:
    for swap in (False, True):
        x = leaf(1, 3, dtype=dtype)
        y = function(other, x) if swap else function(x, other)
        expected = function(other, x.data) if swap else function(x.data, other)
        y.sum().backward()

        assert isinstance(y, Tensor)
        assert y.dtype == dtype
        assert x.grad is not None
        assert x.grad.dtype == dtype
        np.testing.assert_allclose(y.data, np.asarray(expected))


@pytest.mark.parametrize("exponent", [2, 2.0, np.float64(2), np.int64(2)], ids=repr)
def test_a_power_of_float32_is_float32(exponent: float) -> None:
    x = leaf(3, dtype=np.float32)
    y = x**exponent
    y.backward()

    assert y.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [6])


def test_the_zeroth_power_has_no_slope_even_at_zero() -> None:
    x = leaf(0, 2)
    y = x**0
    y.sum().backward()

    np.testing.assert_array_equal(y.data, [1, 1])
    np.testing.assert_array_equal(x.grad, [0, 0])


def test_arrays_and_numbers_on_the_left_give_tensors() -> None:
    x = leaf(1, 2)
    array = np.array([3.0, 4.0])
    for y in (array + x, 3 + x, array - x, array * x, array / x, np.eye(2) @ x):
        assert isinstance(y, Tensor)
    (np.array([[1.0, 2.0], [3.0, 4.0]]) @ x).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 6])


def test_in_place_addition_of_a_tensor_to_an_array_is_refused() -> None:
    total = np.ones(2)
    with pytest.raises(TypeError, match="Tensor"):
        total += leaf(1, 2)  # type: ignore[call-overload]


@pytest.mark.parametrize("function", [np.asarray, np.exp, Tensor, np.sum, lambda t: np.stack([t])])
def test_numpy_does_not_silently_drop_the_gradient(function: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        function(leaf(1, 2))


def test_gradients_keep_the_dtype_of_their_tensor_where_dtypes_meet() -> None:
    single, double = leaf(1, 2, dtype=np.float32), leaf(3, 4)
    middle = single * 2
    weight = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    (F.linear(middle, weight) * double).sum().backward()

    assert grad_of(single).dtype == np.float32
    assert grad_of(double).dtype == np.float64
    assert grad_of(weight).dtype == np.float32
    np.testing.assert_array_equal(grad_of(single), [14, 14])


def test_gradients_of_fused_ops_keep_the_dtype_of_their_tensor() -> None:
    x, weight = leaf(1, 2, dtype=np.float32), Tensor(np.eye(2), requires_grad=True)
    F.linear(x, weight).sum().backward()

    assert x.grad is not None
    assert x.grad.dtype == np.float32


# ---------- leaves and their gradients ----------


def test_requires_grad_can_be_set_on_leaves_only() -> None:
    x = Tensor([1.0])
    x.requires_grad = True
    y = x * 2
    with pytest.raises(GraphError, match=r"only on a leaf: use detach\(\)"):
        y.requires_grad = False
    x.grad = np.ones(1, np.float32)
    x.requires_grad = True
    assert x.grad is not None, "switching on what is on keeps the gradient"
    x.requires_grad = False
    assert x.grad is None
    assert not (x * 2).requires_grad


def test_grad_can_be_set_on_leaves_only() -> None:
    y = leaf(1) * 2

    assert y.grad is None
    with pytest.raises(GraphError, match="only on a leaf that requires a gradient"):
        y.grad = np.ones(1)
    with pytest.raises(GraphError, match="only on a leaf"):
        Tensor([1.0]).grad = np.ones(1, np.float32)


def test_gradients_add_up_over_backward_calls() -> None:
    x = leaf(1, 2)
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()

    np.testing.assert_array_equal(x.grad, [7, 7])
    assert x.grad is first, "in place"


def test_backward_of_a_leaf_gives_its_seed_as_a_copy() -> None:
    x, seed = leaf(1, 2), np.array([3.0, 4.0])
    x.backward(seed)
    seed[0] = 0

    np.testing.assert_array_equal(x.grad, [3, 4])


def test_a_deep_copy_is_a_leaf_of_its_own() -> None:
    x = leaf(1, 2)
    (x * 3).sum().backward()
    y = copy.deepcopy({"a": x, "b": x})["b"]
    (y * 1).sum().backward()

    np.testing.assert_array_equal(x.grad, [3, 3])
    np.testing.assert_array_equal(y.grad, [4, 4])
    assert not np.shares_memory(x.data, y.data)
    assert not copy.deepcopy(Tensor([1.0])).requires_grad


def test_a_deep_copy_of_the_graph_is_refused() -> None:
    with pytest.raises(
        GraphError, match=r"only a leaf or a detached tensor can be copied: use detach\(\)"
    ):
        copy.deepcopy(leaf(1) * 2)


# ---------- errors of backward ----------


def test_backward_of_many_elements_needs_a_gradient() -> None:
    with pytest.raises(ShapeError, match=r"backward: pass grad for a tensor of shape \(2,\)"):
        (leaf(1, 2) * 2).backward()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 2), (2, 1)])
def test_backward_refuses_a_gradient_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"gradient: expected shape \(2,\), got \("):
        (leaf(1, 2) * 2).backward(np.ones(shape))


def test_backward_of_one_element_needs_no_gradient() -> None:
    x = Tensor([[3.0]], requires_grad=True)
    (x * x).backward()

    np.testing.assert_array_equal(x.grad, [[6]])


def test_backward_without_trainable_inputs_is_an_error() -> None:
    with pytest.raises(GraphError, match="nothing to differentiate"):
        (Tensor([1.0]) * 2).backward()


def test_a_second_backward_is_an_error() -> None:
    y = (leaf(1, 2) * 2).sum()
    y.backward()
    with pytest.raises(GraphError, match="walked before: compute the value again"):
        y.backward()


def test_a_second_backward_through_a_shared_part_changes_no_gradient() -> None:
    x, z = leaf(1, 2), leaf(1, 1)
    shared = x * 2
    first, second = shared.sum(), (shared * z + x * 5).sum()
    first.backward()
    before = np.array(x.grad)
    with pytest.raises(GraphError, match="walked before"):
        second.backward()

    np.testing.assert_array_equal(x.grad, before)
    assert z.grad is None


# ---------- graphs of every shape ----------


def test_backward_survives_a_graph_of_100_000_nodes() -> None:
    x = leaf(1, 2)
    y = x
    for _ in range(100_000):
        y = y + 1
    y.sum().backward()

    np.testing.assert_array_equal(x.grad, [1, 1])


def test_a_deep_graph_can_be_dropped_without_backward() -> None:
    x = leaf(1, 2)
    y = x
    for _ in range(100_000):
        y = y * 1.0
    node = weakref.ref(y)
    del y
    gc.collect()

    assert node() is None


def test_a_wide_graph_adds_up() -> None:
    x = leaf(1, 2)
    total = Tensor(np.zeros(2))
    for i in range(5_000):
        total = total + x * i
    total.sum().backward()

    np.testing.assert_array_equal(x.grad, [12_497_500] * 2)


def test_each_diamond_of_a_chain_doubles_the_gradient() -> None:
    x = leaf(1)
    y = x
    for _ in range(30):
        y = y + y
    y.backward()

    np.testing.assert_array_equal(x.grad, [2**30])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + x, [2, 2]),
        (lambda x: x - x, [0, 0]),
        (lambda x: x * x, [2, 4]),
        (lambda x: x / x, [0, 0]),
        (lambda x: x + x.reshape(2, 1).reshape(2), [2, 2]),
        (lambda x: x + x[::-1], [2, 2]),
        (lambda x: x[:1] + x[1:], [1, 1]),
        (lambda x: F.concatenate([x, x, x * 2]), [4, 4]),
        (lambda x: F.maximum(x, x), [1, 1]),
        (lambda x: x.transpose() * x, [2, 4]),
        (lambda x: F.linear(x, x.reshape(1, 2)), [2, 4]),
    ],
    ids=range(11),
)
def test_one_tensor_may_be_used_twice(
    function: Callable[[Tensor], Tensor], expected: list[float]
) -> None:
    x = leaf(1, 2)
    y = function(x)
    y.backward(np.ones(y.shape))

    np.testing.assert_allclose(grad_of(x), expected, atol=1e-15)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: x.reshape(2, 1).transpose()[0] + y,
        lambda x, y: F.concatenate([x, y]),
        lambda x, y: F.broadcast_to(x, (2,)) + y[:],
        lambda x, y: F.where(np.array([True, True]), x, y) + y,
    ],
    ids=range(5),
)
def test_a_gradient_shares_its_memory_with_no_other(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    x, y = leaf(1, 2), leaf(3, 4)
    z = function(x, y)
    z.backward(np.ones(z.shape))
    assert x.grad is not None
    before = np.array(y.grad)
    x.grad += 100

    np.testing.assert_array_equal(y.grad, before)


UNARY: list[tuple[Callable[[Tensor], Tensor], Callable[[Array], Callable[[Array], Array]]]] = [
    (lambda x: -x, lambda _: lambda g: -g),
    (lambda x: x * 2, lambda _: lambda g: 2 * g),
    (lambda x: x.reshape(3, 2).reshape(2, 3), lambda _: lambda g: g),
    (lambda x: x[::-1], lambda _: lambda g: g[::-1]),
    (lambda x: x.tanh(), lambda x: lambda g: g * (1 - np.tanh(x) ** 2)),
    (F.relu, lambda x: lambda g: g * (x > 0)),  # a fused op returns new arrays
    (lambda x: F.linear(x, Tensor(np.eye(3))), lambda _: lambda g: g),
]
BINARY: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Array, Array], list[Array]]]] = [
    (lambda a, b: a + b, lambda a, b: [np.ones_like(a), np.ones_like(b)]),
    (lambda a, b: a - b, lambda a, b: [np.ones_like(a), -np.ones_like(b)]),
    (lambda a, b: a * b, lambda a, b: [b, a]),
]


def half_times(slope: Array) -> Callable[[Array], Array]:
    return lambda g: 0.5 * g * slope


STEPS = st.lists(
    st.tuples(st.integers(0, len(UNARY) + len(BINARY) - 1), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=25,
)


@given(steps=STEPS, leaves=st.integers(1, 3), roots=st.lists(st.integers(0, 99), max_size=3))
def test_any_graph_matches_a_walk_without_in_place_sums(
    steps: list[tuple[int, int, int]], leaves: int, roots: list[int]
) -> None:
    rng = np.random.default_rng(0)
    tensors = [Tensor(rng.uniform(-1, 1, (2, 3)), requires_grad=True) for _ in range(leaves)]
    # For each tensor: the tensors it was made of, and the pullback to each.
    back: list[list[tuple[int, Callable[[Array], Array]]]] = [[] for _ in tensors]
    for op, first, second in steps:
        i, j = first % len(tensors), second % len(tensors)
        a, b = tensors[i], tensors[j]
        if op < len(UNARY):
            function, pullback = UNARY[op]
            made = F.maximum(function(a), Tensor(np.full((2, 3), -1e9)))
            back.append([(i, pullback(a.data))])
        else:
            binary, slopes = BINARY[op - len(UNARY)]
            made = binary(a, b) * 0.5
            left, right = slopes(a.data, b.data)
            back.append([(i, half_times(left)), (j, half_times(right))])
        tensors.append(made)
    expected: list[Array] = [np.zeros((2, 3)) for _ in tensors]
    result = tensors[-1]
    expected[-1] = np.ones((2, 3))
    for root in roots:
        result = result + tensors[root % len(tensors)]
        expected[root % len(tensors)] = expected[root % len(tensors)] + 1
    for i in reversed(range(len(tensors))):
        for j, pull in back[i]:
            expected[j] = expected[j] + pull(expected[i])
    result.backward(np.ones((2, 3)))

    reached = [t.grad for t in tensors[:leaves]]
    for grad, wanted in zip(reached, expected, strict=False):
        np.testing.assert_allclose(
            np.zeros((2, 3)) if grad is None else grad, wanted, rtol=1e-12, atol=1e-12
        )
    arrays = [grad for grad in reached if grad is not None]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


# ---------- no_grad ----------


def test_nothing_is_recorded_within_no_grad() -> None:
    x = leaf(1, 2)
    with no_grad():
        with no_grad():
            assert not (x * 2).requires_grad
        assert not F.gelu(x).requires_grad
        assert not (x * 2).requires_grad, "the inner block has not switched it back on"
    assert (x * 2).requires_grad


def test_no_grad_is_a_decorator_that_can_be_called_again() -> None:
    @no_grad()
    def double(x: Tensor) -> Tensor:
        return x * 2

    for _ in range(2):
        assert not double(leaf(1)).requires_grad
    assert (leaf(1) * 2).requires_grad


def test_recording_resumes_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (leaf(1) * 2).requires_grad


def test_no_grad_holds_for_its_own_thread() -> None:
    seen: list[bool] = []
    entered, done = threading.Event(), threading.Event()

    def other() -> None:
        entered.wait()
        seen.append((leaf(1) * 2).requires_grad)
        done.set()

    # An empty context, so that the thread starts as a first one does on every version of Python.
    thread = threading.Thread(target=lambda: contextvars.Context().run(other))
    thread.start()
    with no_grad():
        entered.set()
        done.wait()
    thread.join()

    assert seen == [True]


@pytest.mark.parametrize(
    "function",
    [lambda a: a * a, lambda a: a + 1, lambda a: -a, lambda a: a.exp(), lambda a: a.sum()],
    ids=["mul", "add", "neg", "exp", "sum"],
)
def test_a_zero_dimensional_tensor_stays_an_array(function: Callable[[Tensor], Tensor]) -> None:
    x = Tensor(np.array(0.5), requires_grad=True)
    y = function(x)
    y.backward()

    assert type(y.data) is np.ndarray
    assert type(x.grad) is np.ndarray
    assert y.numpy().shape == y.shape == x.grad.shape == ()
