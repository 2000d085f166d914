"""The running state of plugins, beside the weights."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.train.toys import adapted, classifier, needles
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, PluginError
from tinygrad_peft.nn import Module
from tinygrad_peft.peft import PeftModel, hookimpl
from tinygrad_peft.train import (
    StepEnded,
    TrainConfig,
    hookspecs,
    read_running_state,
    train,
    write_running_state,
)
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft.train.running_state import RUNNING_STATE

CONFIG = TrainConfig(batch_size=4, lr=1e-2)


class Averaging:
    """A plugin that averages the norm of the gradient, and counts steps in whole numbers."""

    def __init__(self) -> None:
        self.average = np.zeros(())
        self.steps = np.zeros(1, np.int64)

    def state_dict(self) -> Mapping[str, AnyArray]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, AnyArray], /) -> None:
        self.average, self.steps = state["average"], state["steps"]

    @hookimpl(hookspecs.step_ended)
    def step_ended(self, event: StepEnded) -> None:
        self.average = 0.5 * self.average + 0.5 * np.array(event.grad_norm)
        self.steps = self.steps + 1

    @hookimpl(hookspecs.running_state)
    def running_state(self, model: Module) -> "Averaging":  # noqa: ARG002 - the hook's argument
        return self


def test_running_state_is_saved_beside_the_weights_and_restored(tmp_path: Path) -> None:
    plugin, fresh = Averaging(), Averaging()
    train_into(tmp_path, adapted(plugin), needles(24), None, CONFIG)
    assert load_file(tmp_path / RUNNING_STATE).keys() == {"plugin-0:average", "plugin-0:steps"}
    peft = adapted(fresh)
    read_running_state(peft, tmp_path)
    assert fresh.average == plugin.average > 0
    assert fresh.steps.tolist() == [6]
    assert fresh.steps.dtype == np.int64


def test_the_state_of_several_plugins_is_separate(tmp_path: Path) -> None:
    plugins, fresh = (Averaging(), Averaging()), (Averaging(), Averaging())
    plugins[0].average, plugins[1].average = np.array(1.0), np.array(2.0)
    write_running_state(adapted(*plugins), tmp_path)
    read_running_state(adapted(*fresh), tmp_path)
    assert [float(plugin.average) for plugin in fresh] == [1.0, 2.0]


def test_without_running_state_there_is_no_file_and_an_old_one_is_removed(tmp_path: Path) -> None:
    train_into(tmp_path, adapted(Averaging()), needles(8), None, CONFIG)
    assert (tmp_path / RUNNING_STATE).exists()
    train_into(tmp_path, adapted(), needles(8), None, CONFIG)
    assert not (tmp_path / RUNNING_STATE).exists()
    write_running_state(classifier(), tmp_path)
    assert not (tmp_path / RUNNING_STATE).exists()


def test_a_plugin_has_one_running_state(tmp_path: Path) -> None:
    mark = hookimpl(hookspecs.running_state)

    def one(model: Module) -> Averaging:
        return Averaging()

    def two(model: Module) -> Averaging:
        return Averaging()

    peft = adapted(SimpleNamespace(one=mark(one), two=mark(two)))
    with pytest.raises(PluginError, match="plugin 'plugin-0': expected one running state, got two"):
        write_running_state(peft, tmp_path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=RUNNING_STATE):
        read_running_state(adapted(Averaging()), tmp_path)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / RUNNING_STATE).mkdir()
    with pytest.raises(
        CheckpointError, match=r"cannot be written: running_state\.safetensors is a "
    ):
        write_running_state(adapted(Averaging()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RUNNING_STATE]


def test_plugins_in_only_one_of_the_file_and_the_model_are_all_listed(tmp_path: Path) -> None:
    plugin = Averaging()
    peft: PeftModel = adapted(plugin)
    save_file({"other:x": np.zeros(1), "third:x": np.zeros(1)}, tmp_path / RUNNING_STATE)
    with pytest.raises(CheckpointError) as error:
        read_running_state(peft, tmp_path)
    assert str(error.value).splitlines() == [
        f"{tmp_path / RUNNING_STATE} does not fit the model:",
        "  - missing: the state of 'plugin-0'",
        "  - unexpected: the state of 'other'",
        "  - unexpected: the state of 'third'",
    ]
    assert plugin.steps.tolist() == [0]


def test_training_without_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(adapted(Averaging()), needles(8), None, CONFIG)
    assert list(tmp_path.iterdir()) == []
