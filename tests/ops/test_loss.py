import importlib

import numpy as np
import pytest

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor

TARGETS = np.array([[2, -100, 0], [4, 4, -100]])


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def by_hand(logits: Array, targets: IntArray, smoothing: float, ignored: int = -100) -> float:
    """Compute the loss from its definition, one target at a time."""
    losses = []
    for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.ravel(), strict=True):
        if target != ignored:
            wanted = np.full(len(row), smoothing / len(row))
            wanted[target] += 1 - smoothing
            losses.append(-(wanted * np.log(np.exp(row) / np.exp(row).sum())).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_mean_over_the_targets_that_are_not_ignored(smoothing: float) -> None:
    logits = normal(2, 3, 5)
    loss = F.cross_entropy(Tensor(logits), TARGETS, label_smoothing=smoothing)

    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_hand(logits, TARGETS, smoothing), rel=1e-12)


def test_another_index_can_be_ignored() -> None:
    logits, targets = normal(2, 5), np.array([4, 1])
    loss = F.cross_entropy(Tensor(logits), targets, ignore_index=4)

    assert loss.item() == pytest.approx(by_hand(logits, targets, 0, ignored=4), rel=1e-12)


def test_logits_far_apart_give_a_finite_loss() -> None:
    logits = Tensor(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), requires_grad=True)
    loss = F.cross_entropy(logits, np.array([0, 1]))
    loss.backward()

    assert loss.item() == pytest.approx(1e4)
    np.testing.assert_allclose(grad_of(logits), np.array([[0, 0], [0.5, -0.5]]), atol=1e-7)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("logits_at_once", [1, 90, 6_500_000])
def test_the_fused_loss_is_the_loss_of_the_projection(
    logits_at_once: int, smoothing: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("tinygrad_peft.ops.loss")
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", logits_at_once)  # 1: 16 rows at a time
    targets = np.random.default_rng(3).integers(0, 5, (5, 20))
    targets[::2, ::3] = -100

    def run(*, fused: bool) -> list[Array]:
        x, weight, offset = (
            Tensor(normal(*shape, seed=i), requires_grad=True)
            for i, shape in enumerate(((5, 20, 4), (5, 4), (5,)))
        )
        b = offset if bias else None
        if fused:
            loss = F.linear_cross_entropy(x, weight, b, targets, label_smoothing=smoothing)
        else:
            loss = F.cross_entropy(F.linear(x, weight, b), targets, label_smoothing=smoothing)
        (loss * 3).backward()
        leaves = [x, weight, offset] if bias else [x, weight]
        return [loss.data, *(t.grad for t in leaves if t.grad is not None)]

    both = list(zip(run(fused=True), run(fused=False), strict=True))
    assert len(both) == (4 if bias else 3)
    for fused, plain in both:
        np.testing.assert_allclose(fused, plain, rtol=1e-11, atol=1e-15)


def test_the_gradient_of_an_ignored_row_is_zero() -> None:
    x = Tensor(normal(2, 3, 4), requires_grad=True)
    F.linear_cross_entropy(x, Tensor(normal(5, 4)), None, TARGETS).backward()

    assert x.grad is not None
    np.testing.assert_array_equal((x.grad == 0).all(axis=-1), TARGETS == -100)


LOSSES = {
    "cross_entropy": lambda targets: F.cross_entropy(Tensor(np.zeros((2, 5))), targets),
    "linear_cross_entropy": lambda targets: F.linear_cross_entropy(
        Tensor(np.zeros((2, 4))), Tensor(np.zeros((5, 4))), None, targets
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (np.array([-100, -100]), TokenError, "every target is ignored"),
        (np.array([0, 5]), TokenError, r"target 5 is outside the 5 classes 0\.\.4"),
        (np.array([-1, 0]), TokenError, "target -1 is outside the 5 classes"),
        (np.array([0.0, 1.0]), TokenError, "targets: expected integers, got float64"),
        (np.array([[0, 1]]), ShapeError, r"targets: expected shape \(2,\), got \(1, 2\)"),
    ],
)
def test_invalid_targets_are_named(
    name: str, targets: IntArray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LOSSES[name](targets)


def test_a_head_of_another_width_is_an_error() -> None:
    x, weight = Tensor(np.zeros((2, 4))), Tensor(np.zeros((5, 3)))
    with pytest.raises(
        ShapeError, match=r"expected x \(\.\.\., 3\) for W \(5, 3\), got shape \(2, 4\)"
    ):
        F.linear_cross_entropy(x, weight, None, np.array([0, 1]))
