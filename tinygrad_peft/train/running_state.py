"""The running state of plugins: what training on needs besides the weights.

An importance that a plugin averages over steps, say, or a budget that it has spent. It is written
beside the weights as running_state.safetensors, each array under `plugin:name`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, PluginError, listed
from tinygrad_peft.files import saving, settled
from tinygrad_peft.models.hf.safetensors import read_header
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train import hookspecs
from tinygrad_peft.train.trainable import Stateful

__all__ = ["RUNNING_STATE", "has_running_state", "read_running_state", "write_running_state"]

RUNNING_STATE = "running_state.safetensors"


def write_running_state(model: object, folder: Path) -> None:
    """Write the running state of a model's plugins; without any, remove an old file.

    Raises CheckpointError if the file cannot be written.
    """
    arrays = {
        f"{plugin}:{name}": np.array(array, order="C")
        for plugin, state in _states(model).items()
        for name, array in state.state_dict().items()
    }
    with saving(folder) as files:
        files.remove([RUNNING_STATE])
        if arrays:
            files.path(RUNNING_STATE).write_bytes(save(arrays))


def read_running_state(model: PeftModel, folder: Path) -> None:
    """Restore the running state of a model's plugins from the folder of its weights.

    Raises CheckpointError for a file that is missing or broken, for plugins in only one of the file
    and the model, and for arrays that a plugin refuses.
    """
    path = settled(folder) / RUNNING_STATE
    read_header(path)  # checks more than the format's own library
    found: dict[str, dict[str, AnyArray]] = {}
    for key, array in load_file(path).items():
        plugin, _, name = key.rpartition(":")
        found.setdefault(plugin, {})[name] = array
    states = {name: state for name, state in _states(model).items() if state.state_dict()}
    problems = [f"missing: the state of {name!r}" for name in states if name not in found]
    problems += [f"unexpected: the state of {name!r}" for name in found if name not in states]
    if problems:
        raise CheckpointError(f"{path} does not fit the model:\n{listed(problems)}")
    for plugin, state in states.items():
        state.load_state_dict(found[plugin])


def has_running_state(model: object) -> bool:
    """Return True if a plugin of a model has arrays to save."""
    return any(state.state_dict() for state in _states(model).values())


def _states(model: object) -> Mapping[str, Stateful]:
    if not isinstance(model, PeftModel):
        return {}
    states: dict[str, Stateful] = {}
    for answer in model.host.answers(hookspecs.running_state, model):
        if answer.plugin.name in states:
            raise PluginError(f"{answer.plugin.title}: expected one running state, got two")
        states[answer.plugin.name] = answer.value
    return states
