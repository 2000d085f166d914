"""The weight of affine layers that store it, pack it, or are wrapped."""

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.nn import (
    Affine,
    DenseWeight,
    Dropout,
    Linear,
    Module,
    Parameter,
    times_weight,
    weight_of,
)
from tinygrad_peft.tensor import Tensor

WEIGHT = np.random.default_rng(0).normal(size=(4, 5))
X = np.random.default_rng(1).normal(size=(3, 5))


def plain() -> Linear:
    return Linear.of(Parameter(WEIGHT), Parameter(np.ones(4)))


class Scaled(Module):
    """base(2 dropout(x)), which has no `dense_weight`."""

    def __init__(self, base: Affine) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base
        self.dropout = Dropout(0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(self.dropout(x) * 2.0)


class Packed(Module):
    """W = 2 P, stored as P and never run."""

    in_features, out_features = 5, 4

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError(f"the weight is asked for, not the outputs of {x}")

    def dense_weight(self) -> Array:
        return 2 * WEIGHT


def test_a_plain_layer_gives_its_own_array() -> None:
    layer = plain()
    assert isinstance(layer, DenseWeight)
    assert weight_of(layer) is layer.weight.data
    np.testing.assert_array_equal(times_weight(layer, X), X @ WEIGHT.T)


def test_a_packed_layer_computes_its_weight_itself() -> None:
    np.testing.assert_array_equal(weight_of(Packed()), 2 * WEIGHT)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_wrapper_has_the_weight_of_its_outputs_without_dropout_and_bias(mode: str) -> None:
    layer, training = Scaled(Scaled(plain())), mode == "train"
    layer.train(mode=training)
    np.testing.assert_allclose(weight_of(layer), 4 * WEIGHT, rtol=1e-12)
    np.testing.assert_allclose(times_weight(layer, X), 4 * X @ WEIGHT.T, rtol=1e-12)
    assert all(module.training is training for _, module in layer.named_modules())
    assert weight_of(layer).dtype == np.float64
