"""The file that holds a comparison."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.train import Comparison, Evaluated, Row
from tinygrad_peft.train.comparison_result import read_comparison, write_comparison

TRIED = Evaluated(
    step=4, epoch=1.0, loss=0.4, accuracy=0.75, perplexity=None, seconds=0.1, is_best=True
)
ROW = Row(
    label="lora",
    methods=({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]},),
    rates=(1e-3,),
    outcome="finished",
    loss=0.4,
    accuracy=0.75,
    trainable=100,
    total=1000,
    seconds=1.5,
    peak_memory=10**9,
    losses=(0.7, 0.5),
    evaluations=(TRIED,),
    folder="1-lora",
)
FAILED = Row(label="wild", methods=({},), rates=(1e30,), outcome="failed", error="it stopped")
WHOLE = Comparison(
    rows=(ROW, FAILED),
    waiting=("third",),
    interrupted=True,
    job={"model": "minilm-l6"},
    config={"epochs": 2},
    versions={"numpy": "2.0"},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    write_comparison(path, WHOLE)
    assert read_comparison(path) == WHOLE
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.json"]


def test_infinite_numbers_are_read_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    write_comparison(path, replace(WHOLE, rows=(replace(ROW, perplexity=inf),)))
    assert read_comparison(path).rows[0].perplexity is None


def test_rows_give_the_trained_share_and_the_failures() -> None:
    assert ROW.ratio == 0.1
    assert FAILED.ratio is None
    assert WHOLE.failed == (FAILED,)
    assert WHOLE.classifies
    assert not replace(WHOLE, rows=(FAILED,)).classifies


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    write_comparison(path, WHOLE)
    with pytest.raises(TypeError):
        write_comparison(path, replace(WHOLE, job={"model": object()}))
    assert read_comparison(path) == WHOLE


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "comparison.json does not exist"),
        (b"{", "comparison.json is not a comparison: "),
        (b"[]", "comparison.json is not a comparison: Expected `object`, got `array`"),
        (b'{"rows": [{"label": 3}]}', r"Expected `str`, got `int` - at `\$.rows\[0\].label`"),
        (b"[" * 100_000, "comparison.json is not a comparison: "),
        (b"\xff", "comparison.json is not a comparison: "),
    ],
)
def test_a_file_without_a_comparison_is_refused(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "comparison.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_comparison(path)
