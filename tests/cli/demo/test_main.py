"""The demo as a program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tests.cli.demo.tiny import TINY
from tinygrad_peft.cli.demo.__main__ import main, run_demo
from tinygrad_peft.errors import FetchError
from tinygrad_peft.models import fetch as fetching
from tinygrad_peft.train.comparison_result import read_comparison

ROOT = Path(__file__).parents[3]


# ---------- without a network ----------


def test_demo_without_a_network_says_so_and_uses_the_small_model(
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


def test_failure_other_than_the_network_is_not_called_offline(
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


# ---------- errors ----------


def test_folder_that_cannot_be_made_is_refused_first_and_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--offline", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"tinygrad-peft demo: {tmp_path / 'file'}: File exists\n"


def test_part_that_cannot_be_written_is_an_error_in_one_line(
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
