"""Broken folders in Hugging Face layout; test_golden.py has the sound ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.models import load_config, load_model

Copying = Callable[[str], Path]


def configure(folder: Path, **keys: object) -> Path:
    """Set keys of config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def edit(folder: Path, **tensors: AnyArray | None) -> Path:
    """Set tensors; None removes one. `__` stands for a dot."""
    file = folder / "model.safetensors"
    stored: dict[str, AnyArray] = load_file(file)
    for key, array in tensors.items():
        name = key.replace("__", ".")
        if array is None:
            del stored[name]
        else:
            stored[name] = array
    save_file(stored, file)
    return folder


def message(folder: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load_model(folder)
    return str(caught.value)


# ---------- files ----------


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert message(tmp_path / "none") == (
        f"{tmp_path / 'none'} does not exist: expected a folder or a .gguf file"
    )


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path / 'config.json'} does not exist"


def test_a_folder_without_weights_is_an_error(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "model.safetensors").unlink()
    assert message(folder) == (
        f"{folder} holds neither model.safetensors nor model.safetensors.index.json"
    )


def test_pickles_are_refused_and_safetensors_named(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert message(folder) == (
        f"{folder} has its weights in pytorch_model.bin, and a pickle can run any code: "
        "save them as safetensors, with save_pretrained of transformers or safetensors.torch"
    )


def test_the_path_of_the_weights_is_refused_in_place_of_their_folder(copy: Copying) -> None:
    file = copy("gpt2") / "model.safetensors"
    assert message(file) == (
        f"{file} is a file: expected the folder with it and config.json, or a .gguf file"
    )


def test_a_config_must_be_json(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "config.json").write_text('{"model_type": "gpt2",')
    assert f"{folder / 'config.json'} is not JSON: " in message(folder)


def test_a_config_must_be_an_object(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "config.json").write_text("[]")
    assert message(folder) == f"{folder / 'config.json'}: expected a JSON object, got a list"


@pytest.mark.parametrize("size", [0, 5, 100, 5000, -1])
def test_truncated_weights_are_refused(copy: Copying, size: int) -> None:
    folder = copy("gpt2")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    kept = len(whole[:size])
    assert f"{file} is truncated or not a safetensors file ({kept} bytes): " in message(folder)


def test_weights_of_another_format_are_refused(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 1000)
    assert "is truncated or not a safetensors file (4000 bytes)" in message(folder)


# ---------- config.json ----------


def test_an_unknown_model_type_names_the_known(copy: Copying) -> None:
    folder = configure(copy("gpt2"), model_type="gpt_2")
    assert message(folder, ConfigError) == (
        f"{folder / 'config.json'}: unknown model_type 'gpt_2', expected one of gpt2, llama, bert"
        "; did you mean 'gpt2'?"
    )


def test_a_config_without_a_model_type_is_refused(copy: Copying) -> None:
    folder = configure(copy("gpt2"), model_type=None)
    assert "no model_type, expected one of gpt2, llama, bert" in message(folder, ConfigError)


def test_all_faults_of_a_config_are_in_one_error(copy: Copying) -> None:
    folder = configure(
        copy("gpt2"),
        n_embd=None,
        n_layer="2",
        scale_attn_by_inverse_layer_idx=True,
        activation_function="gelu_neu",
        quantization_config={"bits": 4},
        architectures=["GPT2LMHead"],
    )
    known = "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu_fast"
    found = message(folder, ConfigError).splitlines()
    assert found[0] == f"{folder / 'config.json'}: invalid or unsupported settings:"
    assert found[1] == "  - n_embd is missing"
    assert found[2] == "  - n_layer: Expected `int`, got `str`"
    assert found[3].startswith("  - architectures: expected one of GPT2")
    assert found[3].endswith("; did you mean 'GPT2LMHeadModel'?")
    assert found[4] == '  - quantization_config: only null is supported, got {"bits":4}'
    assert found[5] == "  - scale_attn_by_inverse_layer_idx: only false is supported, got true"
    assert found[6].startswith(f"  - activation_function: expected one of {known}")
    assert found[6].endswith("; did you mean 'gelu_new'?")
    assert len(found) == 7


def test_inconsistent_sizes_are_refused(copy: Copying) -> None:
    folder = configure(copy("llama"), num_key_value_heads=3)
    assert "expected a multiple of 3 kv heads, got 4" in message(folder, ConfigError)


# ---------- tensors ----------


def test_every_tensor_that_does_not_fit_is_in_one_error(copy: Copying) -> None:
    folder = edit(
        copy("gpt2"),
        transformer__ln_f__weight=None,
        transformer__ln_g__weight=np.zeros(16, np.float32),
        transformer__h__0__attn__c_attn__weight=np.zeros((48, 16), np.float32),
        transformer__wpe__weight=np.zeros((24, 16), np.int64),
    )
    assert message(folder).splitlines() == [
        f"{folder} does not fit its config.json:",
        "  - missing: transformer.ln_f.weight (16,); did you mean 'transformer.ln_g.weight'?",
        "  - unexpected: transformer.ln_g.weight (16,)",
        "  - wrong shape: transformer.h.0.attn.c_attn.weight is (48, 16), expected (16, 48)",
        "  - wrong dtype: transformer.wpe.weight is I64, expected one of F64, F32, F16, BF16",
    ]


def test_names_without_the_prefix_are_reported_without_it(copy: Copying) -> None:
    folder = edit(copy("bert-no-pooler"), embeddings__LayerNorm__bias=None)
    assert "  - missing: embeddings.LayerNorm.bias (16,)" in message(folder)


def test_weights_of_another_depth_are_refused(copy: Copying) -> None:
    found = message(configure(copy("llama"), num_hidden_layers=1)).splitlines()
    assert len(found) == 10
    assert all(line.startswith("  - unexpected: model.layers.1.") for line in found[1:])


def test_a_weight_under_two_names_is_refused(copy: Copying) -> None:
    folder = edit(copy("gpt2"), wpe__weight=np.zeros((24, 16), np.float32))
    found = message(folder)
    assert found.startswith(f"{folder} has duplicate weights:")
    assert "transformer.wpe.weight" in found
    assert "wpe.weight and" in found or "and wpe.weight" in found


def test_a_tied_head_may_be_in_the_file(copy: Copying) -> None:
    folder = copy("gpt2")
    table = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    model = load_model(edit(folder, lm_head__weight=table.copy()))
    assert model.config.tie_word_embeddings
    assert "lm_head.weight" not in model.state_dict()


def test_a_tied_head_that_differs_is_refused(copy: Copying) -> None:
    folder = edit(copy("gpt2"), lm_head__weight=np.ones((60, 16), np.float32))
    assert "lm_head.weight differs from the token embedding" in message(folder)
    configure(folder, tie_word_embeddings=False)
    assert (load_model(folder).state_dict()["lm_head.weight"] == 1).all()


def test_the_classifier_has_as_many_rows_as_labels(copy: Copying) -> None:
    names = {"0": "no", "1": "yes"}
    folder = configure(copy("bert-classifier"), id2label=names, label2id=None)
    found = message(folder)
    assert "wrong shape: classifier.weight is (3, 16), expected (2, 16)" in found
    assert "wrong shape: classifier.bias is (3,), expected (2,)" in found


def test_the_classifier_gives_the_number_of_unnamed_labels(copy: Copying) -> None:
    config = load_config(configure(copy("bert-classifier"), id2label=None, label2id=None))
    assert config.num_labels == 3
    assert config.label_names == ()


def test_transformers_own_classifier_needs_its_pooler(copy: Copying) -> None:
    dropped = {"bert__pooler__dense__weight": None, "bert__pooler__dense__bias": None}
    folder = edit(copy("bert-classifier"), **dropped)
    assert "missing: bert.pooler.dense.weight (16, 16)" in message(folder)
    assert not load_config(configure(folder, classifier_pooling="mean")).pooler


# ---------- shards ----------


def index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    file = folder / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    change(content["weight_map"])
    file.write_text(json.dumps(content))
    return folder


def test_all_missing_shards_are_named(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    for number in (1, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").unlink()
    assert message(folder) == (
        f"{folder} lacks files that model.safetensors.index.json lists:\n"
        "  - model-00001-of-00003.safetensors\n"
        "  - model-00003-of-00003.safetensors"
    )


def test_an_index_of_many_absent_shards_gets_a_short_message(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    many = {f"a{n}": f"model-{n:06}.safetensors" for n in range(10**5)}
    index(folder, lambda places: places.update(many))
    told = message(folder)
    assert len(told) < 2_000
    assert told.endswith("... and 99980 more")


def test_an_index_larger_than_any_model_needs_is_not_read(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    path = folder / "model.safetensors.index.json"
    with path.open("r+b") as file:
        file.truncate(8_000_001)  # holes
    assert message(folder) == f"{path} has 8,000,001 bytes, expected at most 8,000,000"


def test_a_shard_must_have_the_tensors_listed_in_the_index(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    index(folder, lambda places: places.update({"extra": "model-00001-of-00003.safetensors"}))
    assert "missing: extra in model-00001-of-00003.safetensors" in message(folder)


def test_an_index_must_list_all_tensors(copy: Copying) -> None:
    folder = index(copy("gpt2-sharded"), lambda places: places.pop("transformer.ln_f.bias"))
    assert "missing: transformer.ln_f.bias (16,)" in message(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_must_stay_in_the_folder(copy: Copying, name: str) -> None:
    folder = index(copy("gpt2-sharded"), lambda places: places.update({"extra": name}))
    assert f"expected files of the folder, got: {name!r}" in message(folder)


def test_an_index_must_have_a_map(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    assert "weight_map: Expected `str`, got `int`" in message(folder)


# ---------- token ids ----------


@pytest.mark.parametrize("token", [60, -1])
def test_a_loaded_model_refuses_unknown_tokens(copy: Copying, token: int) -> None:
    model = load_model(copy("llama"))
    with pytest.raises(ValueError, match=rf"token id {token} at position \(0, 1\)"):
        model(np.array([[1, token]]))


# ---------- settings that ask for too much ----------


def test_no_more_layers_are_built_than_there_are_tensors(copy: Copying) -> None:
    folder = configure(copy("gpt2"), n_layer=9_999)
    assert message(folder).endswith(
        "does not fit its config.json: num_hidden_layers is 9999, and there are 28 tensors"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"n_layer": 10**9}, "num_hidden_layers: expected at most 10000, got 1000000000"),
        ({"n_embd": 2**40, "n_head": 1}, "head_dim: expected at most 100000, got 1099511627776"),
        ({"vocab_size": 10**30}, "invalid shape of an array: (10"),
        ({"activation_function": ["gelu"]}, "activation_function: expected one of gelu"),
    ],
)
def test_invalid_sizes_are_refused(copy: Copying, settings: dict[str, object], told: str) -> None:
    assert told in message(configure(copy("gpt2"), **settings), ConfigError)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_file_is_refused_and_safetensors_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "is a pickle, which can run any code, and is never read" in message(tmp_path / name)
    assert "save it as safetensors" in message(tmp_path / name)
