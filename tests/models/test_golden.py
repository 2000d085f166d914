"""Models saved by transformers, against the outputs of transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.models import load_config, load_model, save_model
from tinygrad_peft.nn import Transformer

FOLDERS = sorted(p.parent for p in (Path(__file__).parents[1] / "golden").glob("*/config.json"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def differences(model: Transformer, folder: Path) -> Array:
    """Compare our outputs with transformers' except on padding."""
    with np.load(folder / "expected.npz") as stored:
        ids, mask, expected = stored["ids"], stored["mask"], stored["output"]
    apart = np.abs(model(ids, mask).numpy() - expected)
    return np.asarray(apart if apart.ndim == 2 else apart[mask != 0])


def test_there_are_golden_files_of_every_family() -> None:
    assert {load_config(folder).model_type for folder in FOLDERS} == {"gpt2", "llama", "bert"}


def test_the_output_matches_transformers(folder: Path) -> None:
    assert differences(load_model(folder), folder).max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoders_classifier_matches_transformers(name: str) -> None:
    (golden,) = (each for each in FOLDERS if each.name == name)
    model = load_model(golden)
    model.config = replace(model.config, pad_token_id=0)
    model.with_classifier(3)
    with np.load(golden / "expected.npz") as stored:
        ids, mask = stored["ids"], stored["mask"]
    with np.load(golden / "classifier.npz") as stored:
        weight, expected = stored["weight"], stored["output"]
    model.load_state_dict(model.state_dict() | {"classifier.weight": weight})
    padded = np.where(mask, ids, 0)
    for given in (mask, None):  # padding is known by the ids as well
        np.testing.assert_allclose(model(padded, given).numpy(), expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_float64_is_at_least_as_close(folder: Path) -> None:
    model = load_model(folder, dtype=np.float64)
    assert model.state_dict()["embed_tokens.weight"].dtype == np.float64
    assert differences(model, folder).max() < 1e-4


def test_a_saved_model_loads_bit_for_bit_the_same(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.config == model.config
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_weights_are_contiguous_and_the_model_is_in_evaluation_mode(folder: Path) -> None:
    model = load_model(str(folder))
    assert all(array.flags.c_contiguous for array in model.state_dict().values())
    assert not any(module.training for _, module in model.named_modules())
