"""Checks of training data."""

import pytest

from tests.train.toys import language_model
from tinygrad_peft.errors import DataError
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.evaluation import evaluate
from tinygrad_peft.train.example_checks import check_examples
from tinygrad_peft.train.labels import IGNORED
from tinygrad_peft_prompt import PromptTuningConfig


def test_the_first_example_decides_the_kind_of_a_set() -> None:
    assert check_examples(EncodedData([Encoded((1, 2), 0)]), "training")
    assert not check_examples(EncodedData([Encoded((1, 2), (1, 2))]), "training")


def test_no_examples_are_an_error() -> None:
    with pytest.raises(DataError, match="training examples: expected at least one, got none"):
        check_examples(EncodedData([]), "training")


def test_all_invalid_classified_examples_are_listed_at_once() -> None:
    examples = [
        Encoded((1, 2), 1),
        Encoded((), 0),
        Encoded((1, 2, 3, 4), -100),
        Encoded((1, 2), (1, 2)),
    ]
    with pytest.raises(DataError) as error:
        check_examples(EncodedData(examples), "training", max_length=3)
    assert str(error.value).splitlines() == [
        "invalid training examples:",
        "  - example 1: expected at least one token, got none",
        "  - example 2: expected at most 3 tokens (max_length), got 4",
        "  - example 2: expected a class of at least 0, got -100",
        "  - example 3: expected a class, got labels of tokens",
    ]


def test_all_invalid_texts_are_listed_at_once() -> None:
    examples = [
        Encoded((1, 2), (IGNORED, 2)),
        Encoded((1, 2), (1, 2, 3)),
        Encoded((1, 2), (1, IGNORED)),
        Encoded((1, 2), 1),
    ]
    with pytest.raises(DataError) as error:
        check_examples(EncodedData(examples), "evaluation")
    assert str(error.value).splitlines() == [
        "invalid evaluation examples:",
        "  - example 1: expected 2 labels, one per token, got 3",
        "  - example 2: expected a label past the first token, got none",
        "  - example 3: expected labels of tokens, got a class",
    ]


def test_a_set_of_the_wrong_kind_is_an_error() -> None:
    with pytest.raises(DataError, match="example 0: expected a class, got labels of tokens"):
        check_examples(EncodedData([Encoded((1, 2), (1, 2))]), "evaluation", classes=True)


def test_virtual_tokens_leave_less_room_for_a_text() -> None:
    model = language_model()
    peft = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=10))
    rows = EncodedData([Encoded(ids, ids) for ids in (tuple(range(6)), tuple(range(7)))])
    check_examples(rows[:1], "training", model=peft)
    with pytest.raises(DataError, match="example 1: expected at most 6 tokens beside 10 virtual"):
        check_examples(rows, "training", model=peft)
    with pytest.raises(DataError, match="example 1: expected at most 6 tokens beside 10 virtual"):
        evaluate(peft, rows, batch_size=2)
    peft.unload()
    check_examples(rows, "training", model=model)
