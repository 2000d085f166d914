"""finetune --resume: runs that were stopped go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.toys import Commands
from tests.train.killed_runs import Job, log, newest_checkpoint, outcome
from tests.train.toys import at_step
from tinygrad_peft.train import Event, Observer, progress

RUN = ("--epochs", "2", "--batch-size", "8", "--save-every", "2", "--eval-every", "3")  # 12 steps
LORA = ("--method", "lora:r=4,lora_dropout=0.2")


def arguments(world: Path, out: Path, *more: str, method: tuple[str, ...] = LORA) -> list[str]:
    """The arguments that fine-tune the encoder on the reviews."""
    return [*job(world, method), "--out", str(out), *more]


def job(world: Path, method: tuple[str, ...] = LORA) -> list[str]:
    data = ("--train", str(world / "reviews.jsonl"), "--eval", str(world / "more-reviews.jsonl"))
    task = ("--task", "sequence-classification")
    return ["--model", str(world / "bert"), *task, *data, *method, *RUN]


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> "Stopping":
    return Stopping(monkeypatch)


class Stopping:
    """Ends a run after a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    @contextmanager
    def __call__(self, step: int, how: type[BaseException]) -> Iterator[None]:
        def stop(_event: Event) -> None:
            raise how

        @contextmanager
        def display(*, quiet: bool) -> Iterator[Observer]:
            assert not quiet
            yield at_step(step, stop)

        with self.monkeypatch.context() as patched:
            patched.setattr(progress, "progress_display", display)
            yield


def test_a_killed_run_goes_on_to_the_files_of_an_unbroken_one(
    small_world: Path, tmp_path: Path, commands: Commands, stopping: Stopping
) -> None:
    commands.ok("finetune", *arguments(small_world, tmp_path / "whole"))
    out = tmp_path / "out"
    with stopping(7, Killed), pytest.raises(Killed):
        commands("finetune", *arguments(small_world, out))
    assert newest_checkpoint(out) == 6
    ran = commands.ok("finetune", *arguments(small_world, out, "--resume", "--json"))
    assert (ran.json["steps"], ran.json["outcome"]) == (12, "finished")
    assert outcome(out) == outcome(tmp_path / "whole")
    assert "finished, and there is nothing to resume" in commands.fails(
        "finetune", *arguments(small_world, out, "--resume")
    )


def test_an_interrupted_run_goes_on_with_other_checkpoint_settings(
    small_world: Path, tmp_path: Path, commands: Commands, stopping: Stopping
) -> None:
    commands.ok("finetune", *arguments(small_world, tmp_path / "whole"))
    out = tmp_path / "out"
    with stopping(5, KeyboardInterrupt):
        assert commands("finetune", *arguments(small_world, out)).status == 130
    assert newest_checkpoint(out) == 5
    seldom = ("--save-every", "50", "--keep", "1", "--quiet", "--resume")
    commands.ok("finetune", *arguments(small_world, out, *seldom))
    found, whole = outcome(out), outcome(tmp_path / "whole")
    assert found.pop("metrics.json") != whole.pop("metrics.json")  # it has these settings
    assert found == whole


def test_a_run_with_other_options_does_not_go_on(
    small_world: Path, tmp_path: Path, commands: Commands, stopping: Stopping
) -> None:
    out = tmp_path / "out"
    with stopping(5, Killed), pytest.raises(Killed):
        commands("finetune", *arguments(small_world, out))
    other = ("--resume", "--lr", "0.1", "--train", str(small_world / "more-reviews.jsonl"))
    message = commands.fails("finetune", *arguments(small_world, out, *other))
    assert message.splitlines()[1:] == [
        "  - settings: lr: expected None, as the run has, got 0.1",
        "  - training examples: expected those of the run, got others",
    ]
    message = commands.fails("finetune", *arguments(small_world, out, method=("--method", "ia3")))
    assert f"{out}" in message
    assert newest_checkpoint(out) == 4


def test_without_a_run_there_is_nothing_to_resume(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    message = commands.fails("finetune", *arguments(small_world, out, "--resume"))
    assert message == (
        f"tinygrad-peft: {out} has no run to resume: expected checkpoints or log.jsonl\n"
    )
    assert not out.exists()


# ---------- real processes ----------


def program(world: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tinygrad_peft", "finetune", *arguments(world, out, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_for_step(out: Path, step: int) -> None:
    for _ in range(2400):
        if any(line.step >= step for line in log(out)):
            return
        time.sleep(0.025)
    pytest.fail(f"no step {step} within a minute")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_which_then_goes_on(
    small_world: Path, tmp_path: Path, commands: Commands, number: signal.Signals
) -> None:
    out, long = tmp_path / "out", ("--epochs", "200")
    with program(small_world, out, *long) as process:
        try:
            wait_for_step(out, 4)
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert output.splitlines()[0].split() == ["outcome", "interrupted"]
    assert output.splitlines()[1].split()[-1] == "--resume"
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert metrics["outcome"] == "interrupted"
    assert newest_checkpoint(out) == metrics["steps"]
    kept = metrics["steps"] + 2
    with program(small_world, out, *long, "--resume") as process:
        try:
            wait_for_step(out, kept)
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert newest_checkpoint(out) >= kept
    steps = [line.step for line in log(out) if line.event == "step_ended"]
    assert steps == list(range(1, newest_checkpoint(out) + 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_run_under_nohup_ignores_the_end_of_its_terminal(
    small_world: Path, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; a child inherits it
    try:
        with program(small_world, tmp_path / "out") as process:
            wait_for_step(tmp_path / "out", 2)
            process.send_signal(signal.SIGHUP)
            process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_run_killed_at_random_times_goes_on_to_the_same_bits(
    small_world: Path, tmp_path: Path
) -> None:
    killed = Job([*job(small_world), "--epochs", "10"], longest=0.2)
    killed.run(tmp_path / "whole")
    rng = random.Random(0)  # noqa: S311 - no secret
    kills = list(killed.run_killed(tmp_path / "out", rng, 2))
    assert kills
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
