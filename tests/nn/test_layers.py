import numpy as np
import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import (
    Dropout,
    Embedding,
    Init,
    LayerNorm,
    Linear,
    Module,
    RMSNorm,
    seed_dropout,
)
from tinygrad_peft.tensor import Tensor


class Two(Module):
    def __init__(self) -> None:
        self.first = Dropout(0.5)
        self.second = Dropout(0.5)


def test_layers_are_initialised_as_documented() -> None:
    linear = Linear(64, 500)
    table = Embedding(500, 64)

    assert abs(linear.weight.data).max() <= 1 / 8
    assert abs(linear.weight.data).max() > 0.12
    assert linear.bias is not None
    assert not linear.bias.data.any()
    assert table.weight.data.std() == pytest.approx(0.02, rel=0.05)
    assert (LayerNorm(3).weight.data == 1).all()
    assert (RMSNorm(3).weight.data == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_seed_gives_the_same_weights_of_the_dtype(dtype: type[np.floating]) -> None:
    one, same, other = (Linear(4, 5, init=Init(seed, dtype)) for seed in (1, 1, 2))

    assert one.weight.dtype == dtype
    np.testing.assert_array_equal(one.weight.data, same.weight.data)
    assert (one.weight.data != other.weight.data).any()


def test_linear_of_given_weights_shares_them() -> None:
    table = Embedding(7, 3)
    head = Linear.of(table.weight)

    assert (head.in_features, head.out_features) == (3, 7)
    assert head.weight is table.weight
    assert head(Tensor(np.zeros((2, 3)))).shape == (2, 7)


def test_dropout_keeps_the_share_and_the_mean() -> None:
    dropout = Dropout(0.3)
    y = dropout(Tensor(np.ones(200_000, np.float32))).data

    assert (y == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert y.mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    assert y.dtype == np.float32


def test_dropout_does_nothing_out_of_training_or_at_rate_zero() -> None:
    x, dropout = Tensor([1.0, 2.0]), Dropout(0.5)
    dropout.eval()

    assert dropout(x) is x
    assert Dropout(0.0)(x) is x


def test_seeded_dropout_repeats_itself_and_differs_between_places() -> None:
    x, model = Tensor(np.ones(100)), Two()
    seed_dropout(model, 5)
    first = [model.first(x).data, model.first(x).data, model.second(x).data]
    seed_dropout(model, 5)
    again = [model.first(x).data, model.first(x).data, model.second(x).data]
    seed_dropout(model, 6)
    other = model.first(x).data

    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first[0] != first[2]).any()
    assert (first[0] != other).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_an_invalid_dropout_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="dropout rate: expected at least 0 and below 1, got"):
        Dropout(rate)
