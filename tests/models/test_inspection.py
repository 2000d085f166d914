"""Reports on models, from headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinygrad_peft.models import load_model
from tinygrad_peft.models.hf.safetensors import read_header
from tinygrad_peft.models.inspection import (
    Report,
    TensorGroup,
    Tensors,
    collected,
    inspect_gguf,
    inspect_model,
    inspect_tensors,
)

Golden = Callable[[str], Path]
FOLDERS = ("gpt2", "gpt2-sharded", "llama", "llama3-tied", "bert", "bert-classifier")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_sound_model_is_described(golden: Golden, name: str) -> None:
    report, model = inspect_model(golden(name)), load_model(golden(name))
    assert report.sound, report.problems
    assert report.kind == "model"
    config = model.config
    for fact in ("num_hidden_layers", "hidden_size", "vocab_size", "num_key_value_heads"):
        assert report.facts[fact] == getattr(config, fact)
    assert report.facts["family"] == config.model_type
    assert report.tensors is not None
    floats = {k: n for k, n in report.tensors.dtypes.items() if k.startswith("F")}
    assert sum(floats.values()) == model.count()
    assert report.tensors.bytes == sum(
        tensor.nbytes
        for file in golden(name).glob("*.safetensors")
        for tensor in read_header(file).values()
    )


def test_a_classifiers_labels_are_listed(copy: Golden) -> None:
    folder = copy("bert-classifier")
    config = json.loads((folder / "config.json").read_text())
    names = {str(i): f"class {i}" for i in range(len(config["id2label"]))}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
    facts = inspect_model(folder).facts
    assert facts["head"] == "sequence classifier"
    assert facts["labels"] == list(names.values())


def test_tensors_of_all_layers_are_one_group(golden: Golden) -> None:
    tensors = inspect_model(golden("gpt2")).tensors
    assert tensors is not None
    name = "transformer.h.#.attn.c_attn.weight"
    assert TensorGroup(name, (16, 48), "F32", 2) in tensors.groups
    assert sum(group.count for group in tensors.groups) == tensors.count


def test_only_whole_segments_count_as_numbers() -> None:
    stored = {name: _Stored() for name in ("a.1.w2", "a.10.w2", "b1.w", "2")}
    names = {group.name: group.count for group in Tensors.of(stored).groups}
    assert names == {"a.#.w2": 2, "b1.w": 1, "#": 1}


class _Stored:
    dtype, shape, size, nbytes = "F32", (1,), 1, 4


def test_config_and_weights_may_both_be_wrong(copy: Golden) -> None:
    folder = copy("gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_head": "four"}))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    first, second = inspect_model(folder).problems
    assert "truncated or not a safetensors file" in first
    assert "n_head: Expected `int`, got `str`" in second


def test_all_tensors_that_do_not_fit_are_listed(copy: Golden) -> None:
    folder = copy("llama")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name.replace("q_proj", "q_porj")] = tensors.pop(name)
    tensors["model.norm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    (problem,) = inspect_model(folder).problems
    assert f"missing: {name} (16, 16); did you mean" in problem
    assert "wrong shape: model.norm.weight is (3,)" in problem


def test_tensors_of_an_unknown_family_are_still_listed(copy: Golden) -> None:
    folder = copy("gpt2")
    (folder / "config.json").write_text('{"model_type": "gpt3"}')
    report = inspect_model(folder)
    (problem,) = report.problems
    assert "unknown model_type 'gpt3'" in problem
    assert report.tensors is not None


def test_pickles_are_reported_and_not_read(copy: Golden) -> None:
    folder = copy("gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    report = inspect_model(folder)
    assert report.tensors is None
    (problem,) = report.problems
    assert "pytorch_model.bin, and a pickle can run any code" in problem


def test_no_weight_is_read(copy: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr("tinygrad_peft.models.hf.safetensors.StoredTensor.read", read)
    assert inspect_model(copy("llama3-tied")).sound


@pytest.mark.parametrize(
    ("names", "like"),
    [
        (["transformer.h.0.attn.c_attn.weight"], "a model of the family gpt2"),
        (["model.layers.3.mlp.up_proj.weight"], "a model of the family llama"),
        (["encoder.layer.0.output.dense.bias"], "a model of the family bert"),
        (["unet.down.0.weight"], "something else"),
        (["vae.down.0.weight"], None),
    ],
)
def test_a_single_file_is_recognised_by_the_names_of_its_tensors(
    tmp_path: Path, names: list[str], like: str | None
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: np.zeros((2, 3), np.float16) for name in names}, file)
    report = inspect_tensors(file, {"something else": r"unet\..*"})
    assert report.sound
    assert report.facts["like"] == like
    assert report.tensors is not None
    assert dict(report.tensors.dtypes) == {"F16": 6 * len(names)}


def test_a_broken_safetensors_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04")
    report = inspect_tensors(tmp_path / "x.safetensors", {})
    assert not report.sound
    assert report.tensors is None


def test_a_broken_gguf_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    report = inspect_gguf(tmp_path / "x.gguf")
    assert report.facts == {"format": "GGUF"}
    assert "is not a usable GGUF file" in report.problems[0]


def test_a_gguf_model_is_described(golden: Golden, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf extra")
    from tests.models.gguf.test_model import settings, tensors, write

    model = load_model(golden("llama"))
    file = write(gguf, tmp_path / "m.gguf", settings(model.config), tensors(model))
    report = inspect_gguf(file)
    assert report.sound, report.problems
    assert (report.facts["architecture"], report.facts["tokenizer"]) == ("llama", False)
    assert report.facts["num_hidden_layers"] == model.config.num_hidden_layers
    assert report.tensors is not None
    assert dict(report.tensors.dtypes) == {"F32": model.count()}

    arrays = tensors(model)
    del arrays["output_norm.weight"]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (problem,) = inspect_gguf(
        write(gguf, tmp_path / "m.gguf", settings(model.config), arrays)
    ).problems
    assert "missing: output_norm.weight" in problem


def test_a_sound_report_has_sound_parts(tmp_path: Path) -> None:
    broken = Report(path=tmp_path, kind="adapter", problems=["one"])
    assert Report(path=tmp_path, kind="folder").sound
    assert not Report(path=tmp_path, kind="folder", parts=[broken]).sound


def test_only_errors_of_the_library_are_problems() -> None:
    def fault() -> None:
        raise KeyError("a fault of the program")

    with pytest.raises(KeyError):
        collected([], fault)
