import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.reference import PrefixTuning, Reparameterization, attention

CAUSAL = np.tri(4, dtype=bool)


def test_a_layers_prefix_is_its_keys_and_values() -> None:
    tuning = PrefixTuning(num_layers=3, num_heads=2, d_head=4)
    assert tuning.prefix.shape == (3, 2, 10, 2, 4)
    keys, values = tuning.get_prefix(1)
    assert (keys == tuning.prefix[1, 0]).all()
    assert (values == tuning.prefix[1, 1]).all()
    assert tuning.num_parameters() == 3 * 2 * 10 * 2 * 4


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_the_gradients_agree_with_differences(
    rng: np.random.Generator, key_heads: int, masked: bool
) -> None:
    tuning = PrefixTuning(2, key_heads, 3, prefix_length=2, rng=rng)
    tuning.prefix = rng.standard_normal(tuning.prefix.shape)
    q, g = rng.standard_normal((2, 4, 2, 3)), rng.standard_normal((2, 4, 2, 3))
    k, v = rng.standard_normal((2, 4, key_heads, 3)), rng.standard_normal((2, 4, key_heads, 3))
    mask = CAUSAL if masked else None

    def forward() -> Array:
        return tuning.forward(1, q, k, v, mask)

    forward()
    grads = tuning.backward(1, g)
    for array, grad in zip((q, k, v, tuning.prefix), (*grads, tuning.prefix_grad), strict=True):
        assert_gradient(forward, g, array, grad)
    assert not tuning.prefix_grad[0].any(), "the other layer's"


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL,
        CAUSAL.astype(np.int64),
        CAUSAL.astype(np.float64),
        np.where(CAUSAL, 0.0, -np.inf),
        np.where(CAUSAL, 0.0, -1e4),
    ],
)
def test_every_query_sees_the_whole_prefix(rng: np.random.Generator, mask: AnyArray) -> None:
    tuning = PrefixTuning(1, 2, 3, prefix_length=2, rng=rng)
    q, k, v = (rng.standard_normal((2, 4, 2, 3)) for _ in range(3))
    keys, values = (np.stack([part, part]) for part in tuning.get_prefix(0))
    seen = np.hstack([np.ones((4, 2), dtype=bool), CAUSAL])
    expected, _ = attention(
        q, np.concatenate([keys, k], axis=1), np.concatenate([values, v], axis=1), seen
    )
    assert (tuning.forward(0, q, k, v, mask) == expected).all()


def test_a_projected_prefix_passes_its_gradient_on(rng: np.random.Generator) -> None:
    # As prefix tuning stores it: a row for each virtual token, of (layer, key or value, head, dim).
    network = Reparameterization(2, (4, 5, 2 * 2 * 2 * 3), rng=rng)
    network.weights = [rng.standard_normal(weight.shape) for weight in network.weights]
    tuning = PrefixTuning(2, 2, 3, prefix_length=2)
    q, k, v, g = (rng.standard_normal((2, 4, 2, 3)) for _ in range(4))

    def forward() -> Array:
        tuning.prefix = network.forward().reshape(2, 2, 2, 2, 3).transpose(1, 2, 0, 3, 4)
        return tuning.forward(1, q, k, v)

    forward()
    tuning.backward(1, g)
    network.backward(tuning.prefix_grad.transpose(2, 0, 1, 3, 4).reshape(2, 24))
    assert_gradient(forward, g, network.embedding, network.embedding_grad)
    assert_gradient(forward, g, network.weights[0], network.weight_grads[0])


def test_a_mask_for_each_query_alone_leaves_the_prefix_in_sight(rng: np.random.Generator) -> None:
    tuning = PrefixTuning(1, 2, 3, prefix_length=2, rng=rng)
    q, k, v = (rng.standard_normal((2, 4, 2, 3)) for _ in range(3))
    seen = np.array([True, True, True, False])[:, None]
    wide = np.repeat(seen, 4, axis=1)
    assert (tuning.forward(0, q, k, v, seen) == tuning.forward(0, q, k, v, wide)).all()


def test_the_output_without_a_batch_equals_a_batch_of_one(rng: np.random.Generator) -> None:
    tuning = PrefixTuning(1, 2, 3, prefix_length=2, rng=rng)
    q, k, v, g = (rng.standard_normal((4, 2, 3)) for _ in range(4))
    batched = tuning.forward(0, q[None], k[None], v[None], CAUSAL)
    expected, prefix_grad = tuning.backward(0, g[None]), tuning.prefix_grad.copy()
    assert (tuning.forward(0, q, k, v, CAUSAL) == batched[0]).all()
    for grad, one in zip(tuning.backward(0, g), expected, strict=True):
        assert (grad == one[0]).all()
    assert (tuning.prefix_grad == prefix_grad).all()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got num_heads=0, prefix_length=0"):
        PrefixTuning(1, 0, 4, prefix_length=0)
    tuning, q = PrefixTuning(1, 2, 4), np.ones((1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"k: expected shape \(1, 3, 2, 4\), got \(1, 3, 4, 4\)"):
        tuning.forward(0, q, q, q)
    k = np.ones((1, 3, 2, 4))
    with pytest.raises(ValueError, match=r"v: expected shape \(1, 3, 2, 4\), got \(1, 5, 2, 4\)"):
        tuning.forward(0, q, k, np.ones((1, 5, 2, 4)))
    with pytest.raises(ValueError, match=r"mask: expected shape \(..., T, 3\), got \(3, 13\)"):
        tuning.forward(0, q, k, k, np.ones((3, 13)))
    with pytest.raises(ValueError, match=r"mask: expected booleans, or 1 .*; got 0\.5"):
        tuning.forward(0, q, k, k, np.full((3, 3), 0.5))
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        tuning.backward(0, q)
    with pytest.raises(IndexError):
        tuning.get_prefix(1)
