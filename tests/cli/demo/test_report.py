"""The report at the end of the demo."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.cli.demo.job import PROBE, Merged, Outcome
from tinygrad_peft.cli.demo.report import print_outcome
from tinygrad_peft.train import Comparison, Row

OUTCOME = Outcome(
    comparison=Comparison(
        rows=(
            Row(
                label=PROBE,
                methods=(),
                outcome="finished",
                accuracy=0.7633,
                trainable=770,
                total=22_713_216,
                seconds=12.34,
                peak_memory=178_000_000,
            ),
            Row(
                label="lora",
                methods=({},),
                rates=(3e-3,),
                outcome="finished",
                accuracy=0.8175,
                trainable=74_498,
                total=22_787_714,
                seconds=45.67,
                peak_memory=296_000_000,
            ),
        ),
        waiting=(),
        interrupted=False,
        job={},
        config={},
        versions={},
    ),
    merged=Merged(
        tested=1_000, equal=999, largest_difference=2.4e-6, folder=Path("demo-output/merged")
    ),
    out=Path("demo-output"),
    note="",
)
TABLE = """
              accuracy  trained   of all  seconds  peak MB  learning rate
frozen probe   76.33 %      770  0.003 %     12.3      178              –
lora           81.75 %   74,498  0.327 %     45.7      296          0.003

merged model: 999 of 1,000 predictions are the adapted model's; no logit is more than 2.4e-06 away
written in demo-output: comparison.json, comparison.png, the adapters, the model in merged
"""


def test_demo_ends_with_a_table_and_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(OUTCOME)
    assert capsys.readouterr().out == TABLE


def test_without_a_picture_the_reason_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(replace(OUTCOME, note="comparison.png is not drawn: no matplotlib"))
    *_, note, written = capsys.readouterr().out.splitlines()
    assert note == "comparison.png is not drawn: no matplotlib"
    assert "comparison.png" not in written
