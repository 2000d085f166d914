"""Models of sentence-transformers folders, read and written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import load_config, load_model, save_model
from tinygrad_peft.models.inspection import inspect_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.tensor import no_grad

Golden = Callable[[str], Path]
IDS = np.array([[3, 14, 15, 9, 2], [6, 5, 35, 8, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
DENSE = Path("2_Dense") / "model.safetensors"


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def sentence_folder(
    encoder: Path, folder: Path, mode: str = "mean", *more: str, at: str = ""
) -> Path:
    """A golden encoder with a pooling, and further modules, as sentence-transformers writes it."""
    shutil.copytree(encoder, folder / at, dirs_exist_ok=True)
    names = ["Transformer", "Pooling", *more]
    paths = [at, *(f"{i}_{name}" for i, name in enumerate(names[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": mode})
    write_json(folder / at / "sentence_bert_config.json", {"max_seq_length": 11})
    return folder


def logits(model: Transformer) -> Array:
    with no_grad():
        return model(IDS, MASK).data


def kinds(folder: Path) -> list[str]:
    modules = json.loads((folder / "modules.json").read_bytes())
    return [entry["type"].rpartition(".")[2] for entry in modules]


@pytest.mark.parametrize(
    ("mode", "pooling"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")]
)
@pytest.mark.parametrize("name", ["bert", "bert-no-pooler"])
def test_a_new_head_keeps_the_folders_pooling(
    golden: Golden, tmp_path: Path, name: str, mode: str, pooling: str
) -> None:
    folder = sentence_folder(golden(name), tmp_path, mode, "Normalize")
    model = load_model(folder)
    np.testing.assert_array_equal(
        model.hidden_states(IDS, MASK).data, load_model(golden(name)).hidden_states(IDS, MASK).data
    )
    model.with_classifier(["no", "yes"])
    assert model.config.pooling == pooling
    assert model.new_modules == ("classifier",), "a folder's pooling has no pooler"
    hidden = model.hidden_states(IDS, MASK).data
    expected = {
        "mean": (hidden * MASK[:, :, None]).sum(axis=1) / MASK.sum(axis=1, keepdims=True),
        "cls": hidden[:, 0],
        "last": hidden[np.arange(2), [4, 2]],
    }[pooling]
    np.testing.assert_allclose(model.pooled(IDS, MASK).data, expected, rtol=1e-6)


def test_pooling_may_still_be_chosen(golden: Golden, tmp_path: Path) -> None:
    model = load_model(sentence_folder(golden("bert"), tmp_path))
    model.with_classifier(2, pooling="cls")
    hidden = model.hidden_states(IDS).data
    np.testing.assert_array_equal(model.pooled(IDS).data, hidden[:, 0])


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("name", ["bert", "bert-no-pooler"])
def test_a_classifier_is_written_as_a_folder_and_read_back_bit_for_bit(
    golden: Golden, tmp_path: Path, name: str, mode: str
) -> None:
    model = load_model(sentence_folder(golden(name), tmp_path / "base", mode))
    model.with_classifier(["no", "maybe", "yes"], seed=3)
    save_model(model, tmp_path / "out")
    assert kinds(tmp_path / "out") == ["Transformer", "Pooling", "Dense"]
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["architectures"] == ["BertModel"]
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    dense = json.loads((tmp_path / "out" / "2_Dense" / "config.json").read_bytes())
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (
        *(model.config.hidden_size, 3),
        True,
    )
    assert dense["activation_function"] == "torch.nn.modules.linear.Identity"
    assert set(load_file(tmp_path / "out" / DENSE)) == {"linear.weight", "linear.bias"}
    again = load_model(tmp_path / "out")
    assert again.config == load_config(tmp_path / "out") == model.config
    np.testing.assert_array_equal(logits(again), logits(model))
    report = inspect_model(tmp_path / "out")
    assert report.sound, report.problems
    assert report.facts["format"] == "sentence-transformers"
    assert report.facts["labels"] == ["no", "maybe", "yes"]
    assert report.tensors is not None
    assert "#_Dense.weight" in {group.name.replace("2_", "#_") for group in report.tensors.groups}


@pytest.mark.parametrize("more", [(), ("Normalize",)])
def test_an_encoder_is_written_with_its_pooling(
    golden: Golden, tmp_path: Path, more: tuple[str, ...]
) -> None:
    model = load_model(sentence_folder(golden("bert"), tmp_path / "base", "cls", *more))
    save_model(model, tmp_path / "out")
    assert kinds(tmp_path / "out") == ["Transformer", "Pooling", *more]
    assert load_config(tmp_path / "out") == model.config


def test_the_transformer_may_stand_in_a_folder_of_its_own(golden: Golden, tmp_path: Path) -> None:
    folder = sentence_folder(golden("bert"), tmp_path, at="0_Transformer")
    np.testing.assert_array_equal(logits(load_model(folder)), logits(load_model(golden("bert"))))
    assert load_config(folder).max_seq_length == 11
    assert inspect_model(folder).sound


def test_a_length_beyond_the_positions_is_cut_to_them(golden: Golden, tmp_path: Path) -> None:
    folder = sentence_folder(golden("bert"), tmp_path)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 10**9})
    config = load_config(folder)
    assert config.max_seq_length == config.max_position_embeddings


def test_writing_over_a_classifier_leaves_none_of_its_modules(
    golden: Golden, tmp_path: Path
) -> None:
    base = load_model(sentence_folder(golden("bert"), tmp_path / "base"))
    encoder = load_model(tmp_path / "base")
    base.with_classifier(2)
    save_model(base, tmp_path / "out")
    save_model(encoder, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / DENSE).exists()


# ---------- broken heads ----------


@pytest.fixture
def classifier(golden: Golden, tmp_path: Path) -> Path:
    model = load_model(sentence_folder(golden("bert"), tmp_path / "base"))
    model.with_classifier(["no", "yes"])
    save_model(model, tmp_path / "out")
    return tmp_path / "out"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    report = inspect_model(folder)
    assert any(problem in str(caught.value) for problem in report.problems), report.problems
    return str(caught.value)


def test_a_head_without_bias_has_a_bias_of_zeros(classifier: Path) -> None:
    weight = load_file(classifier / DENSE)["linear.weight"]
    save_file({"linear.weight": weight}, classifier / DENSE)
    model = load_model(classifier)
    pooled = model.pooled(IDS).data
    np.testing.assert_allclose(model(IDS).data, pooled @ weight.T, rtol=1e-5, atol=1e-6)


def test_tensors_that_do_not_fit_are_listed(classifier: Path) -> None:
    weight = load_file(classifier / DENSE)["linear.weight"]
    arrays = {"linear.weight": weight[:, :-1].copy(), "linear.bias": np.zeros(2, np.int64)}
    save_file({**arrays, "residual.weight": weight}, classifier / DENSE)
    told = refusal(classifier)
    assert "2_Dense does not fit config.json" in told
    for problem in (
        "wrong shape: weight is (2, 15), expected (2, 16)",
        "wrong dtype: bias is I64",
        "residual.weight",
    ):
        assert problem in told


def test_a_pickle_is_not_read(classifier: Path) -> None:
    (classifier / DENSE).rename(classifier / "2_Dense" / "pytorch_model.bin")
    assert "2_Dense/model.safetensors does not exist" in refusal(classifier)


def test_an_encoder_with_a_head_of_its_own_is_refused(golden: Golden, tmp_path: Path) -> None:
    folder = sentence_folder(golden("bert-classifier"), tmp_path)
    assert "architectures: expected a model without a head" in refusal(folder)
