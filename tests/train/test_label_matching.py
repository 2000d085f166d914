"""Labels of data as classes of a model."""

import pytest

from tinygrad_peft.errors import DataError
from tinygrad_peft.train.label_matching import class_names, class_numbers, log_readings

NAMED = ("NEGATIVE", "POSITIVE")
UNNAMED = class_names((), 2)
STARS = tuple(f"{number} stars" for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("labels", "names", "classes", "told"),
    [
        (["POSITIVE", "NEGATIVE"], NAMED, [1, 0], ""),
        (["POSITIVE"], NAMED, [1], ""),  # a part of the classes
        (["positive", " Negative"], NAMED, [1, 0], "' Negative' as 'NEGATIVE', 'positive' as"),
        (["1", "0"], NAMED, [1, 0], "'0' as 'NEGATIVE', '1' as 'POSITIVE'"),
        (["1"], NAMED, [1], "'1' as 'POSITIVE'"),
        (["1.0", "0.0"], NAMED, [1, 0], "'0.0' as 'NEGATIVE', '1.0' as 'POSITIVE'"),
        (["LABEL_1", "LABEL_0"], NAMED, [1, 0], "'LABEL_0' as 'NEGATIVE'"),
        (["LABEL_1", "LABEL_0"], UNNAMED, [1, 0], ""),
        (["1", "0"], UNNAMED, [1, 0], ""),
        (["label_1"], UNNAMED, [1], "'label_1' as 'LABEL_1'"),
        # Names with numbers of their own are read by these.
        (["LABEL_0", "LABEL_1"], ("LABEL_1", "LABEL_0"), [1, 0], ""),
        (["0", "1"], ("LABEL_1", "LABEL_0"), [1, 0], ""),
        (["1", "3"], STARS, [0, 2], "'1' as '1 stars', '3' as '3 stars'"),
        (["2", "1"], ("1", "2"), [1, 0], ""),
        (["1", "0"], ("1", "0"), [0, 1], ""),
    ],
)
def test_labels_are_read_as_names_or_as_numbers(
    labels: list[str],
    names: tuple[str, ...],
    classes: list[int],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = class_numbers(labels * 2, names)
    log_readings(found, names, "data: ")
    assert found == dict(zip(labels, classes, strict=True))
    assert len(caplog.messages) == bool(told)
    assert all(m.startswith("data: labels are read: ") and told in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "1", "2"], NAMED),
        (["neg", "pos"], NAMED),
        (["neg", "pos"], UNNAMED),
        (["POSITIVE", "0"], NAMED),  # two readings at once
        (["0", "1"], STARS),  # by one off, perhaps
        (["0", "1"], ("1", "2")),
        (["-1", "1"], NAMED),
        (["true", "false"], NAMED),
        (["x"], ("X", "x ")),
        (["0.5"], NAMED),
    ],
)
def test_labels_without_one_reading_for_all_are_refused(
    labels: list[str], names: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="unknown labels"):
        class_numbers(labels, names)


def test_hostile_labels_cost_little_and_give_a_short_message() -> None:
    names = [f"class {number}x" for number in range(50_000)]
    assert len(class_numbers(names, names)) == 50_000
    with pytest.raises(DataError) as caught:
        class_numbers(["9" * 5000, "y" * 100_000, *(f"z{i}" for i in range(5_000))], names)
    assert len(str(caught.value)) < 5_000
    assert str(caught.value).endswith("and 4982 more")


def test_many_names_are_shortened() -> None:
    with pytest.raises(DataError, match=r"'c0', .*'c9', and 90 more\)"):
        class_numbers(["other"], [f"c{number}" for number in range(100)])
