"""Weights that are NaN or infinite, in files of models."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.models.gguf.test_model import gguf, settings, tensors, write
from tinygrad_peft.errors import CheckpointError, NonFiniteWarning, PrecisionWarning
from tinygrad_peft.models import SaveDtype, load_model, save_model
from tinygrad_peft.models.hf import read_header
from tinygrad_peft.models.inspection import inspect_gguf, inspect_model, inspect_tensors
from tinygrad_peft.models.weight_values import with_value_problems

Golden = Callable[[str], Path]

__all__ = ["gguf"]  # a fixture


@pytest.fixture
def broken(golden: Golden, tmp_path: Path) -> Path:
    """A model with NaN in one matrix and infinity in another."""
    model = load_model(golden("bert"))
    weight = model.state_dict()["blocks.0.attn.q_proj.weight"]
    weight[0, 0], weight[1, 2] = np.nan, np.inf
    save_model(model, tmp_path / "broken")
    return tmp_path / "broken"


def test_a_model_with_nan_is_refused_by_the_tensors_name(broken: Path) -> None:
    with pytest.raises(CheckpointError, match="broken: expected finite weights, got: ") as seen:
        load_model(broken)
    assert "attention.self.query.weight: 1 NaN and 1 infinite of " in str(seen.value)


def test_a_model_with_nan_loads_with_a_warning_if_allowed(broken: Path) -> None:
    with pytest.warns(NonFiniteWarning, match="query.weight: 1 NaN and 1 infinite"):
        model = load_model(broken, allow_nonfinite=True)
    assert np.isnan(model.state_dict()["blocks.0.attn.q_proj.weight"][0, 0])


def test_a_gguf_file_with_infinity_is_refused_by_the_tensors_name(
    gguf: ModuleType, golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("llama"))
    model.state_dict()["final_norm.weight"][3] = -np.inf
    file = write(gguf, tmp_path / "m.gguf", settings(model.config), tensors(model))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: 1 infinite of "):
        load_model(file)
    [problem] = with_value_problems(inspect_gguf(file)).problems
    assert problem.startswith("output_norm.weight: 1 infinite of ")


def test_inspecting_the_values_names_them(broken: Path) -> None:
    assert inspect_model(broken).sound
    for report in (inspect_model(broken), inspect_tensors(broken / "model.safetensors", {})):
        [problem] = with_value_problems(report).problems
        assert "attention.self.query.weight: 1 NaN and 1 infinite of " in problem


def test_a_sound_model_stays_sound(golden: Golden) -> None:
    assert with_value_problems(inspect_model(golden("bert"))).sound


@pytest.mark.parametrize(("dtype", "small"), [("float16", 1e-9), ("bfloat16", 1e-42)])
def test_numbers_that_become_zero_are_counted(
    golden: Golden, tmp_path: Path, dtype: SaveDtype, small: float
) -> None:
    model = load_model(golden("bert"))
    state = model.state_dict()
    for array in state.values():
        array[np.abs(array) < 1e-3] = 0  # nothing else is lost
    state["blocks.0.attn.q_proj.weight"][0, :3] = small, -small, 0.0
    state["blocks.1.attn.k_proj.bias"][1] = small
    expected = rf"3 of [\d,]+ numbers are too small for {dtype} and became 0, in 2 tensors"
    with pytest.warns(PrecisionWarning, match=expected) as caught:
        save_model(model, tmp_path, dtype=dtype)
    assert "query.weight: 2, " in str(caught[0].message)
    header = read_header(tmp_path / "model.safetensors")
    [stored] = [t for key, t in header.items() if key.endswith("0.attention.self.query.weight")]
    assert not stored.read(np.dtype(np.float32))[0, :3].any()


def test_nothing_is_lost_in_float32(golden: Golden, tmp_path: Path) -> None:
    model = load_model(golden("bert"))
    model.state_dict()["blocks.0.attn.q_proj.weight"][0, 0] = 1e-42
    save_model(model, tmp_path)
