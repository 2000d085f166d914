"""Labels of examples and batches."""

import numpy as np
import pytest

from tinygrad_peft.train.labels import (
    IGNORED,
    completion_labels,
    count_labels,
    has_labels,
    label_array,
)


def test_a_completion_is_labelled_after_its_prompt() -> None:
    assert completion_labels([5, 6], [7, 8]) == (IGNORED, IGNORED, 7, 8)


@pytest.mark.parametrize(
    ("labels", "has"),
    [((1,), False), ((1, IGNORED), False), ((IGNORED, 2), True), ((), False)],
)
def test_only_labels_past_the_first_token_count(labels: tuple[int, ...], has: bool) -> None:
    assert has_labels(labels) is has


def test_a_batch_ignores_padding_and_the_first_token_of_each_text() -> None:
    labels = label_array([(1, 2, 3), (4, 5)])
    assert labels.tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]]
    assert count_labels(labels) == 3


def test_classes_are_all_counted() -> None:
    labels = label_array([1, 0])
    assert labels.tolist() == [1, 0]
    assert labels.dtype == np.int64
    assert count_labels(labels) == 2
