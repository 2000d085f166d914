"""Runs that are killed at random times, each resumed until it is finished: `make reliability`.

SIGKILL leaves a process no time for anything. Each kill is measured: the steps since the newest
checkpoint, their seconds, and if it fell within a save. A run that is finished is compared with one
that nobody disturbed: the weights bit for bit, the log and the metrics apart from times.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import msgspec

from tinygrad_peft.models.fetch import find_fetched

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "tokens_per_second", "peak_memory", "saved_to")
PATIENCE = 600  # seconds for a process to take its first step
AT_THE_START = 0.15  # the share of kills while a process still loads its model


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: the last step before it, and the work that it cost."""

    step: int
    lost_steps: int
    lost_seconds: float
    within_save: bool


@dataclass(frozen=True)
class Job:
    """The arguments of `finetune`, and how long after its first step a process lives, at most."""

    arguments: Sequence[str]
    longest: float

    def start(self, out: Path, *, resume: bool = False) -> "subprocess.Popen[bytes]":
        """Start a process that trains into `out`."""
        path = os.pathsep.join([str(ROOT), *sys.path])
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tinygrad_peft", "finetune", *self.arguments, "--quiet"),
                *("--out", str(out), *(["--resume"] if resume else [])),
            ],
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    def run(self, out: Path) -> None:
        """Train undisturbed."""
        with self.start(out) as process:
            assert process.wait() == 0

    def run_killed(self, out: Path, rng: random.Random, most: int) -> Iterator[Kill]:
        """Train, killed at random times up to `most` times, and resumed until it is finished."""
        for _ in range(most):
            before, stages, written = newest_checkpoint(out), saves(out), log(out)
            with self.start(out, resume=(out / "log.jsonl").exists()) as process:
                if rng.random() < AT_THE_START:
                    time.sleep(rng.uniform(0, 2))
                else:
                    wait_for_a_step(process, out, before)
                    time.sleep(rng.uniform(0, self.longest))
                process.kill()
                status = process.wait()
            if status == 0 or is_finished(out):
                return
            assert status < 0, f"status {status}"
            yield measured(out, stages, written)
        with self.start(out, resume=(out / "log.jsonl").exists()) as process:
            assert process.wait() == 0


def is_finished(out: Path) -> bool:
    """Return True if a run has written its last file, even if it was killed while it reported."""
    metrics = out / "metrics.json"
    return metrics.exists() and json.loads(metrics.read_bytes())["outcome"] == "finished"


def wait_for_a_step(process: "subprocess.Popen[bytes]", out: Path, before: int) -> None:
    """Wait until a process has made a step after step `before`, or has ended."""
    until = time.monotonic() + PATIENCE
    stale = after(before, log(out))
    while process.poll() is None and time.monotonic() < until:
        if after(before, log(out)) not in ([], stale):
            return
        time.sleep(0.01)


def saves(out: Path) -> set[Path]:
    """Return the saves that have begun and not ended."""
    return {*out.glob(".saving-*"), *out.glob("checkpoints/.saving-*")}


def measured(out: Path, older_saves: set[Path], older_lines: "list[Line]") -> Kill:
    """Return the cost of the kill that has just happened."""
    within, kept, lines = bool(saves(out) - older_saves), newest_checkpoint(out), log(out)
    lost = after(kept, lines) if lines != older_lines else []  # else it had not begun
    steps = [line.step for line in lost if line.event == "step_ended"]
    return Kill(max(steps, default=kept), len(steps), sum(line.seconds for line in lost), within)


def after(step: int, lines: "Sequence[Line]") -> "list[Line]":
    """Return the steps and evaluations after a step."""
    wanted = ("step_ended", "evaluated")
    return [line for line in lines if line.event in wanted and line.step > step]


def newest_checkpoint(out: Path) -> int:
    """Return the step of the checkpoint that a resumed run goes on from; 0 without any."""
    found = list(out.glob("checkpoints/step-*"))
    for journal in out.glob("checkpoints/.saving-*/journal.json"):  # the save has happened
        found += journal.parent.glob("new/step-*")
    return max((int(path.name[5:]) for path in found), default=0)


class Line(msgspec.Struct, frozen=True):
    """A line of log.jsonl."""

    event: str
    step: int
    seconds: float = 0.0


def log(out: Path) -> list[Line]:
    """Read the whole lines of a log."""
    try:
        lines = (out / "log.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Line) for line in lines if line.endswith(b"\n")]


def outcome(out: Path) -> dict[str, object]:
    """Read all files of a finished run, without times and paths."""
    files: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if name == "log.jsonl":
            files[name] = [timeless(json.loads(line)) for line in path.read_bytes().splitlines()]
        else:
            read = path.read_bytes()
            files[name] = timeless(json.loads(read)) if name == "metrics.json" else read
    return files


def timeless(value: object) -> object:
    """Leave out the values that differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


# ---------- on MiniLM ----------


def minilm(folder: Path, data: Path, epochs: int) -> list[str]:
    """Return the arguments of a run of 50 small steps for each epoch."""
    for part, count in {"train": 400, "test": 50}.items():
        with (data / f"{part}.jsonl").open(encoding="utf-8") as lines:
            kept = [line for line, _ in zip(lines, range(count), strict=False)]
        (folder / f"{part}.jsonl").write_text("".join(kept), encoding="utf-8")
    return [
        *("--model", "minilm-l6", "--task", "sequence-classification"),
        *("--train", str(folder / "train.jsonl"), "--eval", str(folder / "test.jsonl")),
        *("--method", "lora:r=8,lora_dropout=0.1,target_modules=query+value"),
        *("--batch-size", "8", "--max-length", "16", "--epochs", str(epochs)),
        *("--eval-every", "40", "--save-every", "5"),
    ]


def main() -> None:
    """Kill runs on MiniLM, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    model, data = find_fetched("minilm-l6"), find_fetched("movie-reviews")
    if model is None or data is None:
        print("skipped: run tinygrad-peft fetch minilm-l6 movie-reviews first")
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(minilm(folder, data.path, given.epochs), longest=10.0)
        report(folder, job, given.kills, given.seed)


def report(folder: Path, job: Job, wanted: int, seed: int) -> None:
    """Make the unbroken run, then killed ones until there were as many kills as wanted."""
    started = time.monotonic()
    job.run(folder / "whole")
    steps = max(line.step for line in log(folder / "whole"))
    print(f"unbroken: {steps} steps in {time.monotonic() - started:.0f} s; seed {seed}", flush=True)
    whole, rng = outcome(folder / "whole"), random.Random(seed)  # noqa: S311 - no secret
    kills: list[Kill] = []
    equal, runs = 0, 0
    while len(kills) < wanted:
        runs += 1
        own = []
        for kill in job.run_killed(folder / f"run-{runs}", rng, wanted - len(kills)):
            own.append(kill)
            print(f"run {runs}, kill {len(kills) + len(own)}: {kill}", flush=True)
        kills += own
        same = outcome(folder / f"run-{runs}") == whole
        equal += same
        verdict = "equal bits" if same else "OTHER BITS"
        print(f"run {runs}: {verdict} after {len(own)} kills", flush=True)
    print(f"{len(kills)} kills in {runs} runs, {equal} of them equal to the unbroken run")
    print(f"kills within a save: {sum(kill.within_save for kill in kills)}")
    for unit in ("steps", "seconds"):
        lost = [getattr(kill, f"lost_{unit}") for kill in kills]
        print(f"lost {unit}: {mean(lost):.2f} on average, {max(lost):.2f} at most")


if __name__ == "__main__":
    main()
