"""The demo, on a language that is made up and a model that is trained here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tests.train.test_progress import run_in_terminal
from tinygrad_peft.cli.demo import main, run_demo
from tinygrad_peft.cli.demo_job import METHOD, Outcome, Score, run_job
from tinygrad_peft.cli.demo_offline import (
    NEGATED,
    OfflineSizes,
    offline_job,
    plain_statements,
    reviews,
    word_tokenizer,
)
from tinygrad_peft.cli.demo_report import print_outcome
from tinygrad_peft.models import load_model
from tinygrad_peft.models.tokenizer import load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftModel

ROOT = Path(__file__).parents[2]
TINY = OfflineSizes(
    width=16, layers=1, statements=48, statement_epochs=1, train=48, test=24, epochs=1
)
OUTCOME = Outcome(
    probe=Score(accuracy=0.7633, trainable=770, seconds=12.34),
    lora=Score(accuracy=0.8175, trainable=74_498, seconds=45.67),
    tested=1_000,
    equal=999,
    largest_difference=2.4e-6,
    adapter=Path("demo-output/adapter"),
    merged=Path("demo-output/merged"),
)
TABLE = """
                          frozen probe      LoRA
accuracy on the test set       76.33 %   81.75 %
trained parameters                 770    74,498
seconds to train                  12.3      45.7

merged model: 999 of 1,000 predictions are the adapted model's; no logit is more than 2.4e-06 away
written: the adapter in demo-output/adapter, the merged model in demo-output/merged
"""


def say_nothing(_line: str) -> None:
    pass


# ---------- the job ----------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[str]]:
    """A job of a tiny model, its folder, and what it said."""
    out, said = tmp_path_factory.mktemp("demo"), list[str]()
    return run_job(offline_job(TINY, said.append), out, said.append), out, said


def test_the_job_measures_both_ways_on_the_same_test_set(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, _, _ = finished
    assert outcome.tested == 24
    assert outcome.probe.trainable == 16 * 2 + 2
    assert outcome.lora.trainable == 2 * 8 * (16 + 16) + outcome.probe.trainable
    for score in (outcome.probe, outcome.lora):
        assert 0 < score.accuracy < 1
        assert score.seconds > 0


def test_the_merged_checkpoint_predicts_what_the_adapted_model_does(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, _, _ = finished
    assert outcome.equal == 24
    assert outcome.largest_difference < 1e-5


def test_the_saved_adapter_and_the_merged_model_are_the_same_model(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, out, _ = finished
    assert (outcome.adapter, outcome.merged) == (out / "adapter", out / "merged")
    merged, base = load_model(outcome.merged), pretrained_again()
    adapted = PeftModel.from_pretrained(base, outcome.adapter, host=Host.installed())
    ids = np.array([load_tokenizer(outcome.merged).encode("the plot was not very good")])
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
        "before: a linear probe of the frozen model",
        "after: LoRA, r=8, on query and value",
        "merging, and reading the merged checkpoint back",
    ]


def test_what_is_called_lora_is_what_is_applied(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, _, _ = finished
    config = json.loads((outcome.adapter / "adapter_config.json").read_text("utf-8"))
    assert METHOD.startswith("lora:r=8,")
    assert (config["r"], config["target_modules"]) == (8, ["query", "value"])


@pytest.mark.slow
def test_lora_learns_what_the_probe_of_the_small_model_cannot(tmp_path: Path) -> None:
    outcome = run_job(offline_job(OfflineSizes(), say_nothing), tmp_path, say_nothing)
    assert outcome.probe.accuracy < 0.8
    assert outcome.lora.accuracy > outcome.probe.accuracy + 0.1
    assert outcome.equal == outcome.tested == 600


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


def test_without_a_terminal_the_table_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(OUTCOME)
    assert capsys.readouterr().out == TABLE


def test_in_a_terminal_the_table_is_drawn() -> None:
    pytest.importorskip("rich")
    program = (
        "from tests.cli.test_demo import OUTCOME\n"
        "from tinygrad_peft.cli.demo_report import print_outcome\n"
        "print_outcome(OUTCOME)\n"
    )
    lines = run_in_terminal("-c", program).splitlines()
    assert any(set("┏━┳┓") <= set(line) for line in lines)
    [accuracy] = [line for line in lines if "accuracy" in line]
    assert [cell.strip() for cell in accuracy.split("│")[2:4]] == ["76.33 %", "81.75 %"]


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


def test_offline_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path, offline=True, sizes=TINY)
    output, errors = capsys.readouterr()
    assert "could not download" not in errors
    assert f"written: the adapter in {tmp_path}" in output


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
    (tmp_path / "adapter").touch()
    assert main(["--offline", "--out", str(tmp_path)], sizes=TINY) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"tinygrad-peft demo: {tmp_path / 'adapter'} cannot be made: File exists"


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
def test_the_real_model_gains_from_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert "MiniLM-L6 on movie reviews: 1,500 to train on, 600 to test on" in errors
    [accuracy] = [line for line in output.splitlines() if line.startswith("accuracy")]
    before, after = (float(word) for word in accuracy.split() if word[0].isdigit())
    assert before + 1 < after
    assert "merged model: 600 of 600 predictions" in output
