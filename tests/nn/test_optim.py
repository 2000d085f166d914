"""Optimisers: they give what a plain float64 program of the same formulas gives."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft.errors import CheckpointError, ConfigError, TrainingError
from tinygrad_peft.nn import SGD, AdamW, Optimizer, Parameter, clip_grad_norm

Floats = npt.NDArray[np.floating]
Make = Callable[[list[Parameter]], Optimizer]

SHAPES = [(), (7,), (5, 3), (2, 3, 4), (0, 3), (300, 400)]  # the last is larger than a block


def plain_adamw(
    weight: Floats,
    grads: Sequence[Floats],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Floats:
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, g in enumerate(grads, start=1):
        weight = weight - lr * decay * weight
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        weight = weight - lr * m_hat / (np.sqrt(v_hat) + eps)
    return weight


def plain_sgd(
    weight: Floats, grads: Sequence[Floats], *, lr: float, momentum: float, decay: float
) -> Floats:
    velocity = np.zeros_like(weight)
    for g in grads:
        velocity = momentum * velocity + (g + decay * weight)
        weight = weight - lr * velocity
    return weight


def take_steps(optimizer: Optimizer, grads: Sequence[Sequence[Floats]]) -> None:
    """One step for each list of gradients, which has one for each parameter."""
    for of_step in grads:
        for parameter, grad in zip(optimizer.parameters, of_step, strict=True):
            parameter.grad = grad.copy()
        optimizer.step()


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_factor_gives_a_parameter_its_own_rate(kind: type[AdamW | SGD]) -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((2, 3))
    grads = [np.asarray(rng.standard_normal((2, 3))) for _ in range(3)]
    weights = [Parameter(start.copy()) for _ in range(4)]
    both = kind(weights[:2], lr=0.1, factors={weights[1]: 0.25}, weight_decay=0.1)
    take_steps(both, [[g, g] for g in grads])
    for weight, lr in zip(weights[2:], (0.1, 0.025), strict=True):
        take_steps(kind([weight], lr=lr, weight_decay=0.1), [[g] for g in grads])
    for together, alone in zip(weights[:2], weights[2:], strict=True):
        np.testing.assert_allclose(together.data, alone.data, rtol=1e-14)


def test_an_invalid_factor_is_refused() -> None:
    weight = Parameter(np.ones(2))
    with pytest.raises(ConfigError, match=r"factors\[0\]: expected a finite number of at least 0"):
        AdamW([weight], factors={weight: -1.0})


@given(
    st.sampled_from(SHAPES),
    st.floats(1e-5, 1.0),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    st.floats(1e-12, 1e-2),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_adamw_follows_its_algorithm(
    shape: tuple[int, ...], lr: float, betas: tuple[float, float], eps: float, decay: float
) -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    grads = [np.asarray(rng.standard_normal(shape)) for _ in range(4)]
    weight = Parameter(np.array(start))
    optimizer = AdamW([weight], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    take_steps(optimizer, [[g] for g in grads])
    wanted = plain_adamw(np.asarray(start), grads, lr=lr, betas=betas, eps=eps, decay=decay)
    np.testing.assert_allclose(weight.data, wanted, rtol=1e-10, atol=1e-12)


@given(
    st.sampled_from(SHAPES),
    st.floats(1e-5, 1.0),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_sgd_follows_its_algorithm(
    shape: tuple[int, ...], lr: float, momentum: float, decay: float
) -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    grads = [np.asarray(rng.standard_normal(shape)) for _ in range(4)]
    weight = Parameter(np.array(start))
    optimizer = SGD([weight], lr=lr, momentum=momentum, weight_decay=decay)
    take_steps(optimizer, [[g] for g in grads])
    wanted = plain_sgd(np.asarray(start), grads, lr=lr, momentum=momentum, decay=decay)
    np.testing.assert_allclose(weight.data, wanted, rtol=1e-10, atol=1e-12)


def test_adamw_in_float32_stays_near_float64(rng: np.random.Generator) -> None:
    start = rng.standard_normal((40, 30))
    grads = [rng.standard_normal((40, 30)) for _ in range(20)]
    weight = Parameter(start.astype(np.float32))
    optimizer = AdamW([weight], lr=1e-2)
    take_steps(optimizer, [[g.astype(np.float32)] for g in grads])
    wanted = plain_adamw(start, grads, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, decay=0.01)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight.data, wanted, rtol=1e-5, atol=1e-6)


both = pytest.mark.parametrize(
    "make",
    [lambda p: AdamW(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9)],
    ids=["adamw", "sgd"],
)


@both
def test_weights_are_changed_in_place(make: Make) -> None:
    weight = Parameter(np.ones((3, 2)))
    array = weight.data
    take_steps(make([weight]), [[np.ones((3, 2))]])
    assert weight.data is array
    assert (array < 1).all()


@both
def test_a_weight_of_any_memory_order_is_changed_in_place(
    make: Make, rng: np.random.Generator
) -> None:
    grad = rng.standard_normal((4, 6))
    plain = Parameter(np.ones((4, 6)))
    strided = Parameter(np.ones((6, 8)).T[::2])
    array = strided.data
    take_steps(make([plain]), [[grad]])
    take_steps(make([strided]), [[grad]])
    assert strided.data is array
    np.testing.assert_array_equal(strided.data, plain.data)


@both
def test_a_read_only_weight_is_copied_and_its_source_left_alone(make: Make) -> None:
    source = np.ones(3)
    source.flags.writeable = False
    weight = Parameter(source)
    take_steps(make([weight]), [[np.ones(3)]])
    assert (source == 1).all()
    assert (weight.data < 1).all()


@both
def test_a_weight_without_a_gradient_is_left_alone_and_its_count_too(make: Make) -> None:
    moved, still = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = make([moved, still])
    moved.grad = np.ones(2)
    optimizer.step()
    assert (still.data == 1).all()
    assert list(optimizer.steps) == [1, 0]


@both
def test_an_optimiser_ignores_frozen_weights(make: Make) -> None:
    frozen, trained = Parameter(np.ones(2), requires_grad=False), Parameter(np.ones(2))
    assert make([frozen, trained]).parameters == [trained]


@both
def test_a_weight_given_twice_moves_once(make: Make) -> None:
    once, twice = Parameter(np.ones(2)), Parameter(np.ones(2))
    take_steps(make([once]), [[np.ones(2)]])
    take_steps(make([twice, twice]), [[np.ones(2)]])
    np.testing.assert_array_equal(once.data, twice.data)


@both
def test_nothing_to_train_is_an_error(make: Make) -> None:
    frozen = [Parameter(np.ones(2), requires_grad=False) for _ in range(3)]
    message = "nothing to train: expected parameters that require a gradient, got 0 of 3"
    with pytest.raises(TrainingError, match=message):
        make(frozen)


@both
def test_zero_grad_drops_gradients(make: Make) -> None:
    weight = Parameter(np.ones(2))
    weight.grad = np.ones(2)
    make([weight]).zero_grad()
    assert weight.grad is None


def test_the_learning_rate_can_be_set_between_steps() -> None:
    weight = Parameter(np.ones(1))
    optimizer = SGD([weight], lr=0.5)
    take_steps(optimizer, [[np.ones(1)]])
    optimizer.lr = 0.25
    take_steps(optimizer, [[np.ones(1)]])
    assert weight.data == [0.25]


# ---------- resuming ----------


@both
def test_a_loaded_state_continues_bit_for_bit(make: Make, rng: np.random.Generator) -> None:
    grads = [[rng.standard_normal((4, 3)), rng.standard_normal(5)] for _ in range(6)]
    straight = [Parameter(np.ones((4, 3))), Parameter(np.ones(5))]
    take_steps(make(straight), grads)

    first = [Parameter(np.ones((4, 3))), Parameter(np.ones(5))]
    before = make(first)
    take_steps(before, grads[:3])
    second = [Parameter(p.data.copy()) for p in first]
    after = make(second)
    after.load_state_dict({name: array.copy() for name, array in before.state_dict().items()})
    take_steps(after, grads[3:])
    for there, here in zip(straight, second, strict=True):
        np.testing.assert_array_equal(there.data, here.data)


def test_a_state_of_other_parameters_is_refused_as_a_whole() -> None:
    optimizer = AdamW([Parameter(np.ones(3)), Parameter(np.ones(2))])
    state = {name: array + 1 for name, array in optimizer.state_dict().items()}
    state["exp_avg.0"] = np.ones(4)
    state["exp_avg.2"] = state.pop("exp_avg_sq.1")
    with pytest.raises(CheckpointError) as error:
        optimizer.load_state_dict(state)
    message = str(error.value)
    assert "the state does not fit the optimiser" in message
    assert "missing: exp_avg_sq.1 (2,)" in message
    assert "unexpected: exp_avg.2 (2,)" in message
    assert "wrong shape: exp_avg.0 is (4,), expected (3,)" in message
    assert not any(array.any() for array in optimizer.state_dict().values())


# ---------- settings ----------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamW(p, lr=-1), "lr: expected a finite number of at least 0, got -1"),
        (lambda p: AdamW(p, lr=math.nan), "lr: expected a finite number of at least 0, got nan"),
        (lambda p: AdamW(p, eps=-1e-8), "eps: expected a finite number of at least 0, got -1e-08"),
        (lambda p: AdamW(p, betas=(0.9, 1.0)), "beta2: expected at least 0 and below 1, got 1.0"),
        (lambda p: AdamW(p, betas=(-0.1, 0.9)), "beta1: expected at least 0 and below 1, got -0.1"),
        (lambda p: SGD(p, lr=1, momentum=1), "momentum: expected at least 0 and below 1, got 1"),
        (
            lambda p: SGD(p, lr=1, weight_decay=math.inf),
            "weight_decay: expected a finite number of at least 0, got inf",
        ),
    ],
)
def test_invalid_settings_are_refused(make: Make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make([Parameter(np.ones(1))])


# ---------- clipping ----------


def with_grads(*grads: list[float]) -> list[Parameter]:
    weights = [Parameter(np.zeros(len(grad))) for grad in grads]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = np.array(grad)
    return weights


def gradient(weight: Parameter) -> npt.NDArray[np.floating]:
    assert weight.grad is not None
    return weight.grad


def test_clipping_scales_all_gradients_by_one_factor() -> None:
    weights = [*with_grads([3.0], [0.0, 4.0]), Parameter(np.zeros(2))]
    assert clip_grad_norm(weights, 1.0) == 5.0
    np.testing.assert_allclose(gradient(weights[0]), [0.6], rtol=1e-6)
    np.testing.assert_allclose(gradient(weights[1]), [0.0, 0.8], rtol=1e-6)


@pytest.mark.parametrize("max_norm", [6.0, math.inf])
def test_gradients_within_the_bound_are_left_alone(max_norm: float) -> None:
    weights = with_grads([3.0], [0.0, 4.0])
    assert clip_grad_norm(weights, max_norm) == 5.0
    np.testing.assert_array_equal(gradient(weights[1]), [0.0, 4.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad: float) -> None:
    weights = with_grads([bad], [2.0])
    assert not math.isfinite(clip_grad_norm(weights, 1.0))
    np.testing.assert_array_equal(gradient(weights[1]), [2.0])


def test_the_norm_of_no_gradients_is_zero() -> None:
    assert clip_grad_norm([Parameter(np.zeros(2))], 1.0) == 0.0


# ---------- weights that shrink ----------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kept", [np.array([0, 2]), np.array([True, False, True])])
def test_kept_rows_move_on_as_if_they_had_been_alone(
    rng: np.random.Generator, axis: int, kept: np.ndarray
) -> None:
    start, grads = rng.standard_normal((3, 3)), rng.standard_normal((4, 3, 3))
    whole, alone = Parameter(start.copy()), Parameter(np.take(start, [0, 2], axis))
    one, other = AdamW([whole], lr=0.1), AdamW([alone], lr=0.1)
    take_steps(one, [[g] for g in grads[:2]])
    whole.grad = grads[2]
    one.keep_rows(whole, kept, axis=axis)
    assert whole.grad is None
    assert whole.requires_grad
    take_steps(one, [[np.take(g, [0, 2], axis)] for g in grads[2:]])
    take_steps(other, [[np.take(g, [0, 2], axis)] for g in grads])
    np.testing.assert_array_equal(whole.data, alone.data)


def test_a_weight_that_changed_its_shape_otherwise_is_refused() -> None:
    weight = Parameter(np.ones((3, 2)))
    optimizer = AdamW([weight], lr=0.1)
    weight.replace_data(np.ones((2, 2)))
    weight.grad = np.ones((2, 2))
    message = r"a weight changed its shape from \(3, 2\) to \(2, 2\): shrink it by keep_rows"
    with pytest.raises(TrainingError, match=message):
        optimizer.step()


def test_rows_of_a_weight_that_is_not_trained_cannot_be_kept() -> None:
    optimizer = AdamW([Parameter(np.ones((3, 2)))], lr=0.1)
    with pytest.raises(TrainingError, match="keep_rows: expected a weight that this optimiser"):
        optimizer.keep_rows(Parameter(np.ones((3, 2))), np.array([0]))
