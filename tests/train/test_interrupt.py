"""Ctrl-C: the first one ends a run well, the second at once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.train.toys import at_step, classifier, needles, same, saved, saving, weights
from tinygrad_peft.nn import Transformer
from tinygrad_peft.train import Event, TrainConfig, TrainingEnded, TrainResult, train
from tinygrad_peft.train.interrupt import Interrupts, Stopped

ROOT = Path(__file__).parents[2]


def press_ctrl_c(_event: object = None) -> None:
    raise KeyboardInterrupt


def run_interrupted(
    model: Transformer, step: int, out: Path | None, events: list[Event] | None = None
) -> TrainResult:
    """A run of two epochs, 4 steps each, that is interrupted when `step` has ended."""
    observers = [*([events.append] if events is not None else []), at_step(step, press_ctrl_c)]
    return train(
        model,
        needles(16),
        None,
        TrainConfig(batch_size=4, epochs=2),
        out=out,
        save=saving(model) if out else None,
        observers=observers,
    )


def test_an_interrupted_run_saves_its_weights_and_names_the_folder(tmp_path: Path) -> None:
    model, events = classifier(), list[Event]()
    result = run_interrupted(model, 3, tmp_path, events)
    assert result.interrupted
    assert (result.outcome, result.steps, result.saved_to) == ("interrupted", 3, tmp_path)
    assert same(weights(model), saved(tmp_path))
    end = events[-1]
    assert isinstance(end, TrainingEnded)
    assert (end.outcome, end.step, end.saved_to) == ("interrupted", 3, tmp_path)


def test_a_checkpoint_is_not_overwritten_by_an_interrupted_run(tmp_path: Path) -> None:
    model = classifier()
    result = run_interrupted(model, 6, tmp_path)
    assert result.saved_to == tmp_path / "interrupted"
    assert same(weights(model), saved(tmp_path / "interrupted"))
    assert not same(weights(model), saved(tmp_path))
    four_steps = classifier()
    run_interrupted(four_steps, 4, None)
    assert same(weights(four_steps), saved(tmp_path))


def test_a_second_ctrl_c_within_a_step_saves_nothing(tmp_path: Path) -> None:
    model = classifier()

    def press_twice(_event: Event) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(
            model,
            needles(16),
            None,
            TrainConfig(batch_size=4),
            out=tmp_path,
            save=saving(model),
            observers=[at_step(3, press_twice)],
        )
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_without_a_folder_keeps_its_weights_in_memory() -> None:
    one, other = classifier(), classifier()
    start = weights(one)
    result = run_interrupted(one, 3, None)
    run_interrupted(other, 3, None)
    assert result.saved_to is None
    assert not same(weights(one), start)
    assert same(weights(one), weights(other))


# ---------- where a signal is let through ----------


def pressed_in_a_part(interrupts: Interrupts, times: int, done: list[str]) -> None:
    with interrupts.shield():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("the part")
    done.append("what follows")


def test_a_signal_waits_for_the_end_of_a_shielded_part(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        pressed_in_a_part(interrupts, 1, done)
    assert done == ["the part"]
    assert not interrupts.insistent
    assert caplog.messages == ["stopping after this step; press Ctrl-C again to stop at once"]


def test_a_second_signal_does_not_wait() -> None:
    done: list[str] = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        pressed_in_a_part(interrupts, 2, done)
    assert done == []
    assert interrupts.insistent


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_wait_too_and_are_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    number = signal.Signals[name]
    done: list[str] = []

    def work(interrupts: Interrupts, times: int) -> None:
        with interrupts.shield():
            for _ in range(times):
                signal.raise_signal(number)
            done.append("the part")

    with Interrupts() as interrupts, pytest.raises(Stopped) as error:
        work(interrupts, 1)
    assert (done, error.value.signal, interrupts.first) == (["the part"], number, number)
    assert caplog.messages == [f"{name}: stopping after this step; a second signal stops at once"]
    with Interrupts() as interrupts, pytest.raises(Stopped):
        work(interrupts, 2)
    assert done == ["the part"]
    assert interrupts.insistent


def test_without_a_signal_nothing_happens() -> None:
    done: list[str] = []
    with Interrupts() as interrupts:
        pressed_in_a_part(interrupts, 0, done)
    assert done == ["the part", "what follows"]


def test_a_signal_outside_of_shielded_parts_does_not_wait() -> None:
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not interrupts.insistent


def test_an_error_in_a_shielded_part_comes_before_a_signal() -> None:
    def fail_in_a_part(interrupts: Interrupts) -> None:
        with interrupts.shield():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with Interrupts() as interrupts, pytest.raises(ZeroDivisionError):
        fail_in_a_part(interrupts)


def test_the_handlers_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert before == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    with Interrupts():
        assert not {*before} & {signal.getsignal(number) for number in numbers}
    assert [signal.getsignal(number) for number in numbers] == before


@contextmanager
def handler(number: int, handle: signal.Handlers) -> Iterator[None]:
    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_handler_of_the_program_is_left_alone(name: str) -> None:
    number = signal.Signals[name]
    with handler(number, signal.SIG_IGN), Interrupts() as interrupts, interrupts.shield():
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.raise_signal(number)
    assert interrupts.count == 0


def test_training_works_in_a_thread() -> None:
    results: list[TrainResult] = []

    def work() -> None:
        config = TrainConfig(batch_size=4)
        results.append(train(classifier(), needles(8), None, config))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [result.outcome for result in results] == ["finished"]


# ---------- a real process ----------


@contextmanager
def training_process(folder: Path, pace: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.train.interrupted_run", str(folder), pace]
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    pytest.fail(f"no line {line!r}: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_a_process_cleanly(tmp_path: Path) -> None:
    with training_process(tmp_path, "fast") as process:
        wait_for(process, "step 5")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    outcome, steps, folder, agree = output.splitlines()[-1].split()
    assert (outcome, folder, agree) == ("interrupted", str(tmp_path), "True")
    assert int(steps) >= 5
    assert errors in ("", "stopping after this step; press Ctrl-C again to stop at once\n")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_a_second_ctrl_c_ends_a_process_at_once(tmp_path: Path) -> None:
    with training_process(tmp_path, "slow") as process:
        wait_for(process, "step 5")
        process.send_signal(signal.SIGINT)
        wait_for(process, "saving")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    # The first Ctrl-C has left a checkpoint; the weights were not saved.
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
