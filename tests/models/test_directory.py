"""Folders in Hugging Face layout that are not what they should be; test_golden.py has the good."""

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
    """Set keys of config.json; None takes one out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def edit(folder: Path, **tensors: AnyArray | None) -> Path:
    """Set tensors; None takes one out. `__` stands for a dot."""
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


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert message(tmp_path / "none") == (
        f"{tmp_path / 'none'} does not exist: expected a folder or a .gguf file"
    )


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path / 'config.json'} does not exist"


def test_a_folder_without_weights(copy: Copying) -> None:
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


def test_the_weights_in_place_of_their_folder(copy: Copying) -> None:
    file = copy("gpt2") / "model.safetensors"
    assert message(file) == (
        f"{file} is a file: expected the folder with it and config.json, or a .gguf file"
    )


def test_a_config_that_is_no_json(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "config.json").write_text('{"model_type": "gpt2",')
    assert f"{folder / 'config.json'} is not JSON: " in message(folder)


def test_a_config_that_is_no_object(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "config.json").write_text("[]")
    assert message(folder) == f"{folder / 'config.json'} holds a JSON list, expected an object"


@pytest.mark.parametrize("size", [0, 5, 100, 5000, -1])
def test_truncated_weights(copy: Copying, size: int) -> None:
    folder = copy("gpt2")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    kept = len(whole[:size])
    assert f"{file} is truncated or no safetensors file ({kept} bytes): " in message(folder)


def test_weights_that_are_something_else(copy: Copying) -> None:
    folder = copy("gpt2")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 1000)
    assert "is truncated or no safetensors file (4000 bytes)" in message(folder)


# ---------- config.json ----------


def test_an_unknown_model_type_names_the_known(copy: Copying) -> None:
    folder = configure(copy("gpt2"), model_type="gpt_2")
    assert message(folder, ConfigError) == (
        f"{folder / 'config.json'}: unknown model_type 'gpt_2', expected one of gpt2, llama, bert"
        "; did you mean 'gpt2'?"
    )


def test_a_config_without_a_model_type(copy: Copying) -> None:
    folder = configure(copy("gpt2"), model_type=None)
    assert "no model_type, expected one of gpt2, llama, bert" in message(folder, ConfigError)


def test_all_that_is_wrong_with_a_config_is_in_one_error(copy: Copying) -> None:
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
    assert found[0] == f"{folder / 'config.json'}: config.json asks for what is not supported:"
    assert found[1] == "  - n_embd is missing"
    assert found[2] == "  - n_layer: Expected `int`, got `str`"
    assert found[3].startswith("  - architecture GPT2LMHead is not supported, expected one of GPT2")
    assert found[3].endswith("; did you mean 'GPT2LMHeadModel'?")
    assert found[4] == '  - quantization_config is {"bits":4}; only null is supported'
    assert found[5] == "  - scale_attn_by_inverse_layer_idx is true; only false is supported"
    assert found[6].startswith(f'  - activation_function is "gelu_neu", expected one of {known}')
    assert found[6].endswith("; did you mean 'gelu_new'?")
    assert len(found) == 7


def test_sizes_that_do_not_go_together(copy: Copying) -> None:
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


def test_a_model_of_another_depth(copy: Copying) -> None:
    found = message(configure(copy("llama"), num_hidden_layers=1)).splitlines()
    assert len(found) == 10
    assert all(line.startswith("  - unexpected: model.layers.1.") for line in found[1:])


def test_a_weight_under_two_names(copy: Copying) -> None:
    folder = edit(copy("gpt2"), wpe__weight=np.zeros((24, 16), np.float32))
    found = message(folder)
    assert found.startswith(f"{folder} holds weights twice:")
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


def test_unnamed_labels_are_as_many_as_the_classifier_has_rows(copy: Copying) -> None:
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


def test_shards_that_are_missing_are_all_named(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    for number in (1, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").unlink()
    assert message(folder) == (
        f"{folder} lacks model-00001-of-00003.safetensors, model-00003-of-00003.safetensors, "
        "which model.safetensors.index.json names"
    )


def test_a_shard_without_a_tensor_that_the_index_puts_there(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    index(folder, lambda places: places.update({"extra": "model-00001-of-00003.safetensors"}))
    assert "missing: extra in model-00001-of-00003.safetensors" in message(folder)


def test_an_index_that_leaves_a_tensor_out(copy: Copying) -> None:
    folder = index(copy("gpt2-sharded"), lambda places: places.pop("transformer.ln_f.bias"))
    assert "missing: transformer.ln_f.bias (16,)" in message(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_that_leaves_the_folder(copy: Copying, name: str) -> None:
    folder = index(copy("gpt2-sharded"), lambda places: places.update({"extra": name}))
    assert f"names what is no file of the folder: {name!r}" in message(folder)


def test_an_index_without_a_map(copy: Copying) -> None:
    folder = copy("gpt2-sharded")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    assert "weight_map: Expected `str`, got `int`" in message(folder)


# ---------- token ids ----------


@pytest.mark.parametrize("token", [60, -1])
def test_a_loaded_model_refuses_tokens_that_it_does_not_have(copy: Copying, token: int) -> None:
    model = load_model(copy("llama"))
    with pytest.raises(ValueError, match=rf"token id {token} at position \(0, 1\)"):
        model(np.array([[1, token]]))


# ---------- settings that ask for too much ----------


def test_no_more_layers_are_built_than_there_are_tensors_for(copy: Copying) -> None:
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
        ({"activation_function": ["gelu"]}, 'activation_function is ["gelu"], expected one of'),
    ],
)
def test_sizes_that_no_model_has_are_refused(
    copy: Copying, settings: dict[str, object], told: str
) -> None:
    assert told in message(configure(copy("gpt2"), **settings), ConfigError)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_by_itself_is_refused_and_safetensors_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "is a pickle, which can run any code, and is never read" in message(tmp_path / name)
    assert "save it as safetensors" in message(tmp_path / name)
