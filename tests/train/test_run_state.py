"""The state of a run in files, which may be broken or made up."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.train.test_running_state import Averaging
from tests.train.toys import adapted, at_step, classifier, needles
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train import Event, TrainConfig, train
from tinygrad_peft.train.checkpoints import CHECKPOINTS
from tinygrad_peft.train.stored_state import ARRAYS, PROGRESS, read_state

CONFIG = TrainConfig(batch_size=4, epochs=2, lr=1e-2, save_every=2, eval_every=3)  # 8 steps


class Killed(BaseException):
    """The process is gone."""


def kill(_event: Event) -> None:
    raise Killed


def go(folder: Path, *, resume: bool, model: PeftModel | None = None) -> None:
    peft = model or adapted(Averaging(), model=classifier(dropout=0.1))
    train(
        peft,
        needles(16),
        needles(8),
        CONFIG,
        out=folder,
        save=peft.save_pretrained,
        observers=[] if resume else [at_step(7, kill)],
        resume=resume,
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in step 7, and its newest checkpoint alone."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        go(folder, resume=False)
    rmtree(folder / CHECKPOINTS / "step-00000004")
    return folder


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    return copytree(killed, tmp_path / "run")


def newest(run: Path) -> Path:
    (found,) = (run / CHECKPOINTS).iterdir()
    return found


def error_of(run: Path, model: PeftModel | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        go(run, resume=True, model=model)
    return str(error.value)


def rewrite(run: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the arrays of a checkpoint, as somebody might who also changes the digest."""
    path = newest(run) / ARRAYS
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    retell(run, digests={**told(run)["digests"], ARRAYS: sha256(path)})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def told(run: Path) -> dict[str, dict[str, str]]:
    found = json.loads((newest(run) / PROGRESS).read_bytes())
    assert isinstance(found, dict)
    return found


def retell(run: Path, **changed: object) -> None:
    (newest(run) / PROGRESS).write_text(json.dumps({**told(run), **changed}))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"format": 2}, "Expected `int` <= 1 - at `$.format`"),
        ({"step": -1}, "Expected `int` >= 0 - at `$.step`"),
        ({"seconds": "long"}, "Expected `float`, got `str` - at `$.seconds`"),
        ({"evaluations": [{"step": 1}]}, "missing required field `epoch`"),
        ({"more": 1}, "unknown field `more`"),
        ({"digests": {ARRAYS: "0"}}, "state.safetensors: expected the file that was written"),
        ({"digests": {"../x": "0"}}, "../x: expected the file that was written, got none"),
    ],
)
def test_counts_that_cannot_be_read_are_refused(
    run: Path, changed: dict[str, object], expected: str
) -> None:
    retell(run, **changed)
    assert expected in error_of(run)


def test_counts_that_do_not_fit_the_run_are_all_listed(run: Path) -> None:
    retell(run, step=9, assessed=10, best_step=11)
    message = error_of(run)
    for problem in (
        "wrong shape: losses:all is (6,), expected (9,)",
        "step: expected at most 8, got 9",
        "assessed: expected a step from 0 to 9, got 10",
        "best_step: expected a step from 0 to 9, got 11",
    ):
        assert f"  - {problem}" in message


def test_arrays_that_do_not_fit_the_model_are_all_listed(run: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        names = sorted(name for name in arrays if name.startswith("weights:"))
        arrays["weights:more"] = arrays.pop(names[0])
        arrays[names[1]] = np.concatenate([arrays[names[1]]] * 2)
        arrays["optimizer:exp_avg.0"][...] = np.nan
        arrays["optimizer:steps"][0] = -1
        arrays["losses:all"] = arrays["losses:all"].astype(np.float32)

    rewrite(run, change)
    message = error_of(run)
    for problem in (
        "missing: weights:",
        "unexpected: weights:more",
        "wrong shape: weights:",
        "wrong dtype: losses:all is float32, expected float64",
        "optimizer:exp_avg.0: expected finite numbers",
        "optimizer:steps: expected finite numbers, and counts of at least 0",
    ):
        assert f"  - {problem}" in message


def test_weights_that_have_not_shrunk_alike_are_refused(run: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["optimizer:exp_avg.0"] = arrays["optimizer:exp_avg.0"][:1]

    rewrite(run, change)
    assert "wrong shape: optimizer:exp_avg.0" in error_of(run)


def test_dtypes_that_no_run_has_are_refused(run: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["losses:all"] = np.zeros(6, np.int8)

    rewrite(run, change)
    assert "losses:all: unknown dtype I8" in error_of(run)


def test_a_generator_s_state_is_checked(run: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if name.startswith("generators:"):
                array[4] = 7

    rewrite(run, change)
    assert "not a state of PCG64" in error_of(run)


def test_the_running_state_of_plugins_must_be_there(run: Path) -> None:
    (newest(run) / "running_state.safetensors").unlink()
    expected = "running_state.safetensors: expected the file that was written, got none"
    assert expected in error_of(run)


@pytest.mark.parametrize("file", [ARRAYS, PROGRESS])
def test_a_file_that_is_missing_is_refused(run: Path, file: str) -> None:
    (newest(run) / file).unlink()
    assert file in error_of(run)


def test_a_run_goes_on_with_other_software_after_a_warning(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retell(run, versions={**told(run)["versions"], "numpy": "1.0.0"})
    go(run, resume=True)
    (message,) = caplog.messages
    assert message.startswith("the rest of the run may have other bits than an unbroken one:")
    assert "  - numpy: expected '1.0.0', as the run has, got '" in message


def test_a_checkpoint_holds_no_pickle(run: Path) -> None:
    assert {path.suffix for path in newest(run).iterdir()} == {".json", ".safetensors"}
    assert read_state(newest(run)).progress.step == 6
