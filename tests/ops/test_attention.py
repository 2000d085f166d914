import importlib

import numpy as np
import pytest

from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor


def grad_of(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def by_hand(q: Array, k: Array, v: Array, *, causal: bool, keys: BoolArray | None = None) -> Array:
    """Attend one query and one head at a time, over the keys that the query may see."""
    out = np.zeros(q.shape)
    batch, queries, heads, size = q.shape
    group, length = heads // k.shape[2], k.shape[1]
    for b, t, h in np.ndindex(batch, queries, heads):
        seen = [
            s
            for s in range(length)
            if (not causal or s <= t + length - queries) and (keys is None or keys[b, s])
        ]
        scores = np.array([q[b, t, h] @ k[b, s, h // group] for s in seen]) / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, h] = sum(w * v[b, s, h // group] for w, s in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_attention_is_a_weighted_mean_over_the_visible_keys(
    queries: int, kv_heads: int, causal: bool
) -> None:
    q, k, v = normal(2, queries, 4, 3), normal(2, 5, kv_heads, 3), normal(2, 5, kv_heads, 3, seed=1)
    keys = np.array([[True] * 5, [True, False, True, True, False]])
    value = F.attention(Tensor(q), Tensor(k), Tensor(v), causal=causal, keys=keys)

    expected = by_hand(q, k, v, causal=causal, keys=keys)
    np.testing.assert_allclose(value.data, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [(), (2,)], ids=["one prefix", "a prefix for each row"])
def test_every_query_sees_the_prefix_except_its_padding(
    rows: tuple[int, ...], causal: bool
) -> None:
    q, k, v = normal(2, 4, 4, 3), normal(2, 4, 2, 3), normal(2, 4, 2, 3, seed=1)
    pk, pv = normal(*rows, 3, 2, 3, seed=2), normal(*rows, 3, 2, 3, seed=3)
    keys = np.array([[True] * 6 + [False], [False] + [True] * 6])
    value = F.attention(
        *map(Tensor, (q, k, v)), prefix=(Tensor(pk), Tensor(pv)), causal=causal, keys=keys
    )

    whole_k = np.concatenate([np.broadcast_to(pk, (2, 3, 2, 3)), k], axis=1)
    whole_v = np.concatenate([np.broadcast_to(pv, (2, 3, 2, 3)), v], axis=1)
    expected = by_hand(q, whole_k, whole_v, causal=causal, keys=keys)
    np.testing.assert_allclose(value.data, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["nothing", "the projection", "the prefix"])
def test_packed_attention_with_a_prefix_is_attention_of_its_parts(frozen: str) -> None:
    keep = np.random.default_rng(1).random((2, 4, 3, 5)) < 0.8
    packed, pk, pv = normal(2, 3, 24), normal(2, 4, 2, seed=1), normal(2, 4, 2, seed=2)
    trained = (frozen != "the projection", frozen != "the prefix", frozen != "the prefix")

    def leaves() -> list[Tensor]:
        pairs = zip((packed, pk, pv), trained, strict=True)
        return [Tensor(array, requires_grad=needs) for array, needs in pairs]

    one, other = leaves(), leaves()
    q, k, v = (other[0].reshape(2, 3, 3, 4, 2)[:, :, i] for i in range(3))
    fused = F.attention_packed(
        one[0], prefix=(one[1], one[2]), heads=4, causal=True, keep=keep, rate=0.2
    )
    plain = F.attention(q, k, v, prefix=(other[1], other[2]), causal=True, keep=keep, rate=0.2)
    np.testing.assert_allclose(fused.data, plain.data.reshape(2, 3, 8), rtol=1e-12)
    g = normal(2, 3, 8, seed=3)
    fused.backward(g)
    plain.reshape(2, 3, 8).backward(g)
    for left, right in zip(one, other, strict=True):
        if left.requires_grad:
            np.testing.assert_allclose(grad_of(left), grad_of(right), rtol=1e-12, atol=1e-14)
        else:
            assert left.grad is None


@pytest.mark.parametrize(
    ("pk", "pv"), [((3, 2, 2), (2, 2, 2)), ((3, 4, 2), (3, 4, 2)), ((1, 3, 2, 2), (1, 3, 2, 2))]
)
def test_a_prefix_that_does_not_fit_is_refused(pk: tuple[int, ...], pv: tuple[int, ...]) -> None:
    q, k = Tensor(normal(2, 4, 4, 2)), Tensor(normal(2, 4, 2, 2))
    with pytest.raises(ShapeError, match=r"prefix keys .* and values .* do not fit keys"):
        F.attention(q, k, k, prefix=(Tensor(normal(*pk)), Tensor(normal(*pv))), causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_is_attention_of_its_three_parts(causal: bool) -> None:
    keys = np.array([[True, True, False], [True] * 3])
    keep = np.random.default_rng(1).random((2, 4, 3, 3)) < 0.8
    packed = Tensor(normal(2, 3, 24), requires_grad=True)
    parts = Tensor(packed.data, requires_grad=True)
    q, k, v = (parts.reshape(2, 3, 3, 4, 2)[:, :, i] for i in range(3))
    one = F.attention_packed(packed, heads=4, causal=causal, keys=keys, keep=keep, rate=0.2)
    other = F.attention(q, k, v, causal=causal, keys=keys, keep=keep, rate=0.2).reshape(2, 3, 8)
    g = normal(2, 3, 8, seed=2)
    one.backward(g)
    other.backward(g)

    np.testing.assert_allclose(one.data, other.data, rtol=1e-13)
    np.testing.assert_allclose(grad_of(packed), grad_of(parts), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scores_in_cache", [1, 100, 250, 1_000])
def test_chunk_size_of_scores_does_not_change_the_result(
    scores_in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.random.default_rng(0).random((3, 7)) < 0.8
    keep = np.random.default_rng(1).random((3, 6, 7, 7)) < 0.7

    def run() -> list[Array]:
        q, k, v = (
            Tensor(normal(3, 7, heads, 2, seed=heads + i), requires_grad=True)
            for i, heads in enumerate((6, 3, 3))
        )
        out = F.attention(q, k, v, causal=True, keys=keys, keep=keep, rate=0.3)
        out.backward(normal(*out.shape, seed=9))
        grads = [t.grad for t in (q, k, v) if t.grad is not None]
        return [out.data, *grads]

    at_once = run()
    module = importlib.import_module("tinygrad_peft.ops.attention")  # ops.attention is the op
    monkeypatch.setattr(module, "SCORES_IN_CACHE", scores_in_cache)
    for chunked, whole in zip(run(), at_once, strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-12, atol=1e-14)


def test_more_scores_than_fit_the_cache_match_a_plain_softmax() -> None:
    q, k, v = (normal(2, 400, 2, 4, seed=i) for i in range(3))  # 160,000 scores a head
    value = F.attention(Tensor(q), Tensor(k), Tensor(v), causal=True)

    scores = np.einsum("bthd,bshd->bhts", q, k) / 2
    scores[:, :, ~np.tri(400, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhts,bshd->bthd", weights, v)
    np.testing.assert_allclose(value.data, expected, rtol=1e-11, atol=1e-12)


def test_dropped_probabilities_are_left_out_and_the_others_scaled() -> None:
    q, k, v = (normal(1, 3, 1, 2, seed=i) for i in range(3))
    keep = np.array([[True, False, True], [True, True, True], [False, True, False]])[None, None]
    value = F.attention(Tensor(q), Tensor(k), Tensor(v), causal=False, keep=keep, rate=0.25)

    weights = np.exp(q[0, :, 0] @ k[0, :, 0].T / np.sqrt(2))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        value.data[0, :, 0], (weights * keep[0, 0] / 0.75) @ v[0, :, 0], rtol=1e-13
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_sees_only_padding_stays_finite(dtype: type[np.floating]) -> None:
    keys = np.array([[False, False, True, True]])
    q, k, v = (Tensor(normal(1, 4, 2, 2).astype(dtype), requires_grad=True) for _ in range(3))
    out = F.attention(q, k, v, causal=True, keys=keys)
    out.backward(np.ones(out.shape, dtype))

    for array in (out.data, q.grad, k.grad, v.grad):
        assert array is not None
        assert np.isfinite(array).all()


def test_left_padding_does_not_change_the_result() -> None:
    q, k, v = (normal(1, 5, 2, 4, seed=i) for i in range(3))
    keys = np.array([[False, False, True, True, True]])
    padded = F.attention(Tensor(q), Tensor(k), Tensor(v), causal=True, keys=keys)
    bare = F.attention(Tensor(q[:, 2:]), Tensor(k[:, 2:]), Tensor(v[:, 2:]), causal=True)

    np.testing.assert_allclose(padded.data[:, 2:], bare.data, rtol=1e-13)


def test_zero_queries_and_zero_keys_give_an_empty_result() -> None:
    empty = Tensor(np.zeros((2, 0, 4, 2)))

    assert F.attention(empty, empty, empty, causal=True).shape == (2, 0, 4, 2)


def test_rotary_rotates_pairs_as_complex_numbers() -> None:
    x, angles = normal(2, 5, 3, 8), normal(5, 4, seed=1)
    value = F.rotary(Tensor(x), np.cos(angles), np.sin(angles)).data

    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(value[..., :4], turned.real, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(value[..., 4:], turned.imag, rtol=1e-12, atol=1e-14)


def test_rotary_takes_angles_of_each_row() -> None:
    x, angles = normal(2, 5, 3, 8), normal(2, 5, 4, seed=1)
    value = F.rotary(Tensor(x), np.cos(angles), np.sin(angles)).data

    for row in range(2):
        alone = F.rotary(Tensor(x[row : row + 1]), np.cos(angles[row]), np.sin(angles[row]))
        np.testing.assert_array_equal(value[row], alone.data[0])


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        ((2, 3, 4, 2), (2, 3, 3, 2), (2, 3, 3, 2), "query heads: expected a multiple of 3, got 4"),
        ((2, 3, 4, 2), (2, 3, 4, 3), (2, 3, 4, 3), r"q \(2, 3, 4, 2\), k \(2, 3, 4, 3\)"),
        ((2, 3, 4, 2), (1, 3, 4, 2), (1, 3, 4, 2), "do not fit"),
        ((2, 3, 4, 2), (2, 3, 4, 2), (2, 4, 4, 2), "do not fit"),
        ((2, 3, 4, 2), (2, 0, 4, 2), (2, 0, 4, 2), "expected a key for 3 queries, got none"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        F.attention(Tensor(np.ones(q)), Tensor(np.ones(k)), Tensor(np.ones(v)), causal=True)
