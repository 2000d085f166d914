"""log.jsonl and metrics.json."""

import dataclasses
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from tests.train.toys import classifier, needles, saving
from tinygrad_peft.nn import AdamW
from tinygrad_peft.train import (
    Evaluated,
    Event,
    StepEnded,
    TrainConfig,
    TrainingStarted,
    TrainResult,
    train,
)
from tinygrad_peft.train.log import JsonLines, versions, write_metrics

CONFIG = TrainConfig(batch_size=4, epochs=2)


def run(folder: Path, *observers: JsonLines) -> TrainResult:
    model = classifier()
    held_out = needles(8, seed=1)
    return train(
        model,
        needles(8),
        held_out,
        CONFIG,
        out=folder,
        save=saving(model),
        observers=observers,
    )


def at(step_number: int) -> StepEnded:
    return dataclasses.replace(step(0.5), step=step_number)


def step(loss: float) -> StepEnded:
    model = classifier()
    return StepEnded(
        model=model,
        optimizer=AdamW(model.parameters()),
        step=1,
        total_steps=4,
        epoch=0.5,
        loss=loss,
        lrs=(1e-3,),
        grad_norm=2.0,
        tokens=7,
        seconds=0.1,
    )


def test_each_event_is_a_line_of_json(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "logs" / "log.jsonl") as log:
        result = run(tmp_path, log)
    lines = [
        json.loads(line) for line in (tmp_path / "logs" / "log.jsonl").read_text().splitlines()
    ]
    epoch = ["step_ended", "step_ended", "evaluated"]
    assert [line["event"] for line in lines] == [
        *("training_started", *epoch, *epoch),
        "training_ended",
    ]
    steps = [line for line in lines if line["event"] == "step_ended"]
    assert [line["loss"] for line in steps] == list(result.losses)
    assert [line["epoch"] for line in steps] == [0.5, 1.0, 1.5, 2.0]
    assert lines[3]["accuracy"] == result.evaluations[0].accuracy
    assert lines[-1]["saved_to"] == str(tmp_path)


def test_a_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        log(step(0.5))
        assert json.loads(path.read_text())["loss"] == 0.5


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("of another run\n")
    with JsonLines(path) as log:
        log(step(0.5))
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, loss: float) -> None:
    with JsonLines(tmp_path / "log.jsonl") as log:
        log(step(loss))
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] is None


def test_metrics_hold_the_settings_and_the_result(tmp_path: Path) -> None:
    result = run(tmp_path)
    path = tmp_path / "deeper" / "metrics.json"
    write_metrics(path, CONFIG, result, job={"model": Path("m"), "methods": ["lora:r=8"]})
    metrics = json.loads(path.read_text())
    assert metrics["job"] == {"model": "m", "methods": ["lora:r=8"]}
    assert metrics["config"] == dataclasses.asdict(CONFIG)
    assert metrics["outcome"] == "finished"
    assert metrics["best"] == dataclasses.asdict(result.best) if result.best else False
    assert metrics["final"] == metrics["evaluations"][-1]
    assert len(metrics["evaluations"]) == 2
    for name in ("steps", "seconds", "tokens", "tokens_per_second", "padding_share"):
        assert metrics[name] == getattr(result, name)
    for name in ("peak_memory", "trainable_parameters", "total_parameters"):
        assert metrics[name] == getattr(result, name)
    assert metrics["saved_to"] == str(tmp_path)
    assert metrics["versions"] == versions()


def test_metrics_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    result = run(tmp_path)
    path = tmp_path / "metrics.json"
    write_metrics(path, CONFIG, result)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="JSON cannot hold a complex: 1j"):
        write_metrics(path, CONFIG, result, job={"scale": 1j})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*metrics*")] == ["metrics.json"]


def test_versions_name_the_software_that_numbers_depend_on() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    try:
        assert found["tinygrad_peft"] == version("tinygrad-peft")
    except PackageNotFoundError:
        assert found["tinygrad_peft"] == "unknown"
    assert found["blas"]


@pytest.mark.parametrize(
    ("known", "blas"),
    [
        ({}, "unknown"),
        ({"Build Dependencies": {}}, "unknown"),
        ({"Build Dependencies": {"blas": {"name": "accelerate"}}}, "accelerate"),
    ],
)
def test_a_numpy_that_does_not_know_its_blas_costs_no_metrics(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, object], blas: str
) -> None:
    monkeypatch.setattr(np, "show_config", lambda mode: known)  # noqa: ARG005 - NumPy's name
    assert versions()["blas"] == blas


def test_observers_of_any_kind_fit() -> None:
    def observe(_event: Event) -> None: ...

    train(classifier(), needles(4), None, CONFIG, observers=[observe])


def test_a_link_in_the_place_of_the_log_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "log.jsonl"
    target.write_text("precious")
    for link in (path.symlink_to, path.hardlink_to):
        link(target)
        with JsonLines(path) as log:
            log(step(0.5))
        assert target.read_text() == "precious"
        assert len(path.read_text().splitlines()) == 1
        path.unlink()


# ---------- a log that goes on ----------


def started(step: int) -> TrainingStarted:
    return TrainingStarted(
        steps=8,
        epochs=1,
        train_examples=4,
        eval_examples=0,
        trainable_parameters=1,
        total_parameters=1,
        step=step,
    )


def tried(step: int) -> Evaluated:
    return Evaluated(
        step=step, epoch=1.0, loss=1.0, accuracy=0.5, perplexity=None, seconds=0.1, is_best=True
    )


def events_in(path: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["event"], line["step"]) for line in lines]


def test_a_resumed_run_drops_the_lines_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        for event in (started(0), at(1), tried(1), at(2), at(3), tried(3)):
            log(event)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"step_end')  # the process was killed
    with JsonLines(path) as log:
        for event in (started(2), at(3), tried(3)):
            log(event)
    assert path.read_bytes() == whole


def test_an_evaluation_that_is_made_again_has_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for first in (0, 1):
        with JsonLines(path) as log:
            log(started(first))
            if not first:
                log(at(1))
            log(tried(1))
            log(at(2))
    expected = [("training_started", 0), ("step_ended", 1), ("evaluated", 1), ("step_ended", 2)]
    assert events_in(path) == expected


@pytest.mark.parametrize("old", [None, b"", b"\xff\n", b"[]\n", b'{"event": 1}\n'])
def test_missing_lines_are_logged(
    tmp_path: Path, old: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    if old is not None:
        path.write_bytes(old)
    with JsonLines(path) as log:
        log(started(2))
        log(at(3))
    assert events_in(path) == [("step_ended", 3)]
    assert caplog.messages == [f"{path}: lines are missing before step 3"]
