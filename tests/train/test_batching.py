"""Batches of like length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.train.batching import Batch, batches
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.labels import IGNORED

lengths_of_examples = st.lists(st.integers(1, 40), min_size=1, max_size=200)
seeds = st.none() | st.integers(0, 2**32)


def causal(length: int) -> Encoded:
    return Encoded(tuple(range(1, length + 1)), (IGNORED, *range(2, length + 1)))


def padding_share(made: list[Batch]) -> float:
    return 1 - float(
        sum(batch.attention_mask.sum() for batch in made)
        / sum(batch.input_ids.size for batch in made)
    )


@given(lengths_of_examples, st.integers(1, 33), seeds, st.integers(0, 5))
def test_each_example_appears_exactly_once(
    lengths: list[int], batch_size: int, seed: int | None, epoch: int
) -> None:
    encoded = EncodedData([causal(length) for length in lengths])
    made = batches(encoded, batch_size, seed=seed, epoch=epoch)
    places = np.concatenate([batch.index for batch in made])
    assert sorted(places) == list(range(len(encoded)))
    assert sum(len(batch.index) < batch_size for batch in made) <= 1


@given(lengths_of_examples, st.integers(1, 33), seeds)
def test_rows_hold_their_examples_padded_on_the_right(
    lengths: list[int], batch_size: int, seed: int | None
) -> None:
    encoded = EncodedData([causal(length) for length in lengths], pad_id=7)
    for batch in batches(encoded, batch_size, seed=seed):
        assert batch.attention_mask.any(axis=0).all()  # no column of padding alone
        for row, place in enumerate(batch.index):
            length = lengths[place]
            assert tuple(batch.input_ids[row, :length]) == encoded[place].input_ids
            assert tuple(batch.labels[row, :length]) == encoded[place].labels
            assert (batch.input_ids[row, length:] == 7).all()
            assert (batch.labels[row, length:] == IGNORED).all()
            assert batch.attention_mask[row].sum() == length


@given(lengths_of_examples, st.integers(1, 33), seeds, st.integers(0, 5))
def test_the_same_seed_and_epoch_give_the_same_batches(
    lengths: list[int], batch_size: int, seed: int | None, epoch: int
) -> None:
    encoded = EncodedData([causal(length) for length in lengths])
    first = batches(encoded, batch_size, seed=seed, epoch=epoch)
    again = batches(encoded, batch_size, seed=seed, epoch=epoch)
    assert all(
        np.array_equal(a.index, b.index) and np.array_equal(a.input_ids, b.input_ids)
        for a, b in zip(first, again, strict=True)
    )


def test_epochs_and_seeds_give_different_orders() -> None:
    encoded = EncodedData([causal(1 + number % 7) for number in range(100)])
    orders = {
        tuple(np.concatenate([b.index for b in batches(encoded, 8, seed=s, epoch=e)]))
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, size=4000).clip(1, 64)
    encoded = EncodedData([causal(int(length)) for length in lengths])
    shuffled = batches(encoded, 32, seed=0)
    assert padding_share(shuffled) < 0.05
    assert padding_share(batches(encoded, 32, seed=None)) < 0.02


def test_training_does_not_go_from_short_to_long() -> None:
    encoded = EncodedData([causal(1 + number % 50) for number in range(3200)])
    widths = [b.input_ids.shape[1] for b in batches(encoded, 32, seed=0)]
    first, second = np.mean(widths[:50]), np.mean(widths[50:])
    assert abs(first - second) < 8


@given(lengths_of_examples, st.integers(1, 33))
def test_evaluation_sorts_by_length_and_restores_the_order(
    lengths: list[int], batch_size: int
) -> None:
    made = batches(EncodedData([causal(n) for n in lengths]), batch_size, seed=None)
    ordered = np.concatenate([batch.attention_mask.sum(axis=1) for batch in made])
    assert (np.diff(ordered) <= 0).all()
    restored = np.empty(len(lengths), dtype=int)
    restored[np.concatenate([batch.index for batch in made])] = ordered
    assert restored.tolist() == lengths


def test_batches_have_the_documented_shapes_and_dtypes() -> None:
    [words] = batches(EncodedData([causal(3), causal(2)]), 4, seed=1)
    assert (words.input_ids.shape, words.labels.shape) == ((2, 3), (2, 3))
    assert words.input_ids.dtype == words.labels.dtype == words.index.dtype == np.int64
    assert words.attention_mask.dtype == np.bool_
    [classes] = batches(EncodedData([Encoded((1, 2), 1), Encoded((3,), 0)]), 4, seed=None)
    assert classes.labels.tolist() == [1, 0]
    assert classes.labels.dtype == np.int64


def test_no_examples_make_no_batches() -> None:
    assert batches(EncodedData([]), 4, seed=0) == []
    assert batches(EncodedData([]), 4, seed=None) == []


def test_a_batch_size_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        batches(EncodedData([causal(1)]), 0, seed=0)
