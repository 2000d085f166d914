"""The demo, on a language that is made up and a model that is trained here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.cli.contenders import parse_contenders
from tinygrad_peft.cli.demo.__main__ import main, run_demo
from tinygrad_peft.cli.demo.job import PROBE, Merged, Outcome, run_job
from tinygrad_peft.cli.demo.offline import (
    NEGATED,
    OfflineSizes,
    offline_job,
    plain_statements,
    reviews,
    word_tokenizer,
)
from tinygrad_peft.cli.demo.recipes import demo_recipes
from tinygrad_peft.cli.demo.report import print_outcome
from tinygrad_peft.errors import FetchError, PeftError
from tinygrad_peft.models import fetch as fetching
from tinygrad_peft.models import load_model, load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftModel
from tinygrad_peft.train import Comparison, Row
from tinygrad_peft.train.comparison_result import read_comparison

ROOT = Path(__file__).parents[3]
TINY = OfflineSizes(
    width=16, layers=1, statements=48, statement_epochs=1, train=48, test=24, epochs=1
)
METHODS = ("lora", "adapter", "prefix_tuning", "prompt_tuning", "qlora")
PLOT = find_spec("matplotlib") is not None
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


def say_nothing(_line: str) -> None:
    pass


# ---------- the job ----------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[str]]:
    """A job of a tiny model, its folder, and what it said."""
    out, said = tmp_path_factory.mktemp("demo"), list[str]()
    return run_job(offline_job(TINY, said.append), out, said.append), out, said


def test_the_job_tries_every_method_on_the_same_test_set(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, out, _ = finished
    probe, *rows = outcome.comparison.rows
    assert (probe.label, probe.trainable) == (PROBE, 16 * 2 + 2)
    assert [row.outcome for row in rows] == ["finished"] * 6
    assert rows[0].trainable == 2 * 8 * (16 + 16) + 16 * 2 + 2
    assert outcome.merged.tested == 24
    assert read_comparison(out / "comparison.json") == outcome.comparison
    assert (out / "comparison.png").exists() == PLOT


@pytest.mark.parametrize("specs", [demo_recipes("real"), demo_recipes("offline")])
def test_the_recipes_are_the_five_methods_and_a_composition(specs: Sequence[str]) -> None:
    contenders = parse_contenders(specs, Host.installed())
    names = [tuple(c.peft_type.lower() for c in contender.recipe) for contender in contenders]
    assert names[:5] == [(name,) for name in METHODS]
    assert all(len(name) > 1 for name in names[5:])


def test_the_merged_checkpoint_predicts_what_the_adapted_model_does(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, _, _ = finished
    assert outcome.merged.equal == 24
    assert outcome.merged.largest_difference < 1e-5


def test_the_saved_adapter_and_the_merged_model_are_the_same_model(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, out, _ = finished
    folder = outcome.merged.folder
    merged, base = load_model(folder), pretrained_again()
    adapted = PeftModel.from_pretrained(base, out / "2-lora", host=Host.installed())
    ids = np.array([load_tokenizer(folder).encode("the plot was not very good")])
    np.testing.assert_allclose(merged(ids).data, adapted(ids).data, atol=1e-5)


def pretrained_again() -> Transformer:
    """The base of the tiny job, which comes out the same each time, with the head of the task."""
    model = offline_job(TINY, say_nothing).model
    model.with_classifier(("negative", "positive"), pooling="mean")
    return model


def test_the_job_tells_each_part_as_it_begins(finished: tuple[Outcome, Path, list[str]]) -> None:
    _, _, said = finished
    assert said == [
        "pretraining a small model on 48 plain statements",
        "a small model on made-up reviews: 48 to train on, 24 to test on",
        "merging the first adapter, and reading the merged checkpoint back",
    ]


def test_a_recipe_that_fails_ends_the_demo(tmp_path: Path) -> None:
    job = offline_job(TINY, say_nothing)
    wild = replace(job, recipes=["lora @ lr=3e38, label=wild"])
    with pytest.raises(PeftError, match="wild failed: training stopped"):
        run_job(wild, tmp_path, say_nothing)


@pytest.mark.slow
def test_lora_learns_what_the_probe_of_the_small_model_cannot(tmp_path: Path) -> None:
    job = offline_job(OfflineSizes(), say_nothing)
    outcome = run_job(replace(job, recipes=job.recipes[:1]), tmp_path, say_nothing)
    probe, lora = (row.accuracy or 0 for row in outcome.comparison.rows)
    assert probe < 0.8
    assert lora > probe + 0.1
    assert outcome.merged.equal == outcome.merged.tested == 600


# ---------- the language ----------


def test_each_word_of_the_language_has_its_own_token() -> None:
    tokenizer = word_tokenizer()
    for example in (*reviews(200, seed=0), *plain_statements(200, seed=0)):
        ids = tokenizer.encode(example.text)
        assert tokenizer.decode(ids) == example.text
        assert len(ids) == len(example.text.split()) + 2


def test_not_turns_an_opinion_round_in_reviews_and_means_nothing_in_statements() -> None:
    negated = [e for e in reviews(1000, seed=0) if "was not " in e.text.replace("it was not", "")]
    assert abs(len(negated) / 1000 - NEGATED) < 0.05
    assert {e.label for e in negated if "good" in e.text} == {"negative"}
    assert {e.label for e in negated if "awful" in e.text} == {"positive"}
    statements = [e for e in plain_statements(1000, seed=0) if " not " in e.text]
    assert {e.label.split()[1] for e in statements if "good" in e.text} == {"positive"}


def test_the_same_seed_gives_the_same_language() -> None:
    assert reviews(5, seed=3) == reviews(5, seed=3) != reviews(5, seed=4)


# ---------- the table ----------


def test_the_demo_ends_with_a_table_and_where_all_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(OUTCOME)
    assert capsys.readouterr().out == TABLE


def test_without_a_picture_the_reason_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(replace(OUTCOME, note="comparison.png is not drawn: no matplotlib"))
    *_, note, written = capsys.readouterr().out.splitlines()
    assert note == "comparison.png is not drawn: no matplotlib"
    assert "comparison.png" not in written


# ---------- without a network ----------


def test_without_a_network_one_line_says_so_and_the_small_model_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TINYGRAD_PEFT_CACHE", str(tmp_path / "cache"))
    run_demo(tmp_path / "out", sizes=TINY)
    output, errors = capsys.readouterr()
    [line] = [line for line in errors.splitlines() if line.startswith("offline")]
    start = "offline, so with a small model that is trained on the spot: could not download gt-all-"
    assert line.startswith(start)
    assert "24 of 24 predictions" in output


def test_another_failure_than_a_network_is_not_called_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise FetchError("model.bin is not what it should be")

    monkeypatch.setattr(fetching, "fetch", fail)
    run_demo(tmp_path, sizes=TINY)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "MiniLM-L6 cannot be had, so with a small model that is trained on the spot: "
        "model.bin is not what it should be"
    )


def test_offline_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path, offline=True, sizes=TINY)
    output, errors = capsys.readouterr()
    assert "could not download" not in errors
    assert f"written in {tmp_path}: comparison.json" in output


# ---------- what goes wrong ----------


def test_a_folder_that_cannot_be_made_is_told_in_a_line_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--offline", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"tinygrad-peft demo: {tmp_path / 'file'}: File exists\n"


def test_a_part_that_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merged").touch()
    assert main(["--offline", "--out", str(tmp_path)], sizes=TINY) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"tinygrad-peft demo: {tmp_path / 'merged'} cannot be written: File exists"


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_stops_with_one_line_and_130(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tinygrad_peft.cli.demo", "--offline", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stderr is not None
        assert run.stderr.readline().startswith("pretraining")
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        lines = run.stderr.read().splitlines()
    assert run.returncode == 130
    assert lines[-1] == "tinygrad-peft demo: stopped by Ctrl-C"
    assert not any("Traceback" in line for line in lines)


# ---------- with a network ----------


@pytest.mark.network
def test_the_real_model_gains_from_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert "MiniLM-L6 on movie reviews: 1,500 to train on, 600 to test on" in errors
    probe, lora, *_ = (
        row.accuracy or 0 for row in read_comparison(tmp_path / "comparison.json").rows
    )
    assert probe + 0.01 < lora
    assert "merged model: 600 of 600 predictions" in output
