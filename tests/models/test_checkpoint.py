import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.models import SaveDtype, load_config, load_model, save_model
from tinygrad_peft.models.hf import read_tensors
from tinygrad_peft.models.hf.safetensors import read_header, write_tensors
from tinygrad_peft.nn import Linear, Parameter, Transformer, TransformerConfig
from tinygrad_peft.tensor import Tensor

Golden = Callable[[str], Path]

IDS = np.arange(12).reshape(2, 6)


class Doubled(Linear):
    """A layer with the same weights that computes something else."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2.0


def saved_config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "config.json").read_text())
    return content


# ---------- loading ----------


@pytest.mark.parametrize("dtype", [np.float16, np.int64, "complex64"])
def test_a_model_is_loaded_only_in_float32_or_float64(golden: Golden, dtype: str) -> None:
    with pytest.raises(ConfigError, match="dtype: expected float32 or float64, got "):
        load_model(golden("gpt2"), dtype=dtype)


def test_a_config_is_loaded_without_the_weights(golden: Golden) -> None:
    for name in ("gpt2-sharded", "llama3-tied", "bert-classifier"):
        assert load_config(golden(name)) == load_model(golden(name)).config


def test_the_special_tokens_are_kept(golden: Golden, tmp_path: Path) -> None:
    model = load_model(golden("llama"))
    model.config = dataclasses.replace(model.config, eos_token_id=(2, 7), pad_token_id=0)
    save_model(model, tmp_path)
    written = saved_config(tmp_path)
    assert (written["eos_token_id"], written["pad_token_id"]) == ([2, 7], 0)
    assert load_config(tmp_path) == model.config


def test_the_names_of_labels_are_kept(golden: Golden) -> None:
    config = load_config(golden("bert-classifier"))
    assert config.label_names == ("bad", "good", "mixed")
    assert (config.head, config.num_labels, config.pooling) == ("classification", 3, "cls")


# ---------- saving ----------


@pytest.mark.parametrize(("dtype", "places"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_rounds_to_the_nearest(
    golden: Golden, tmp_path: Path, dtype: SaveDtype, places: int
) -> None:
    model = load_model(golden("llama"))
    save_model(model, tmp_path, dtype=dtype)
    before, after = model.state_dict(), load_model(tmp_path).state_dict()
    for name, array in before.items():
        apart = np.abs(after[name] - array)
        # Half a unit in the last place: nothing between would be nearer.
        assert (apart <= np.abs(array) * 2.0**-places + 1e-7).all(), name
    assert saved_config(tmp_path)["torch_dtype"] == dtype


def test_a_float64_model_is_saved_as_float32(golden: Golden, tmp_path: Path) -> None:
    save_model(load_model(golden("bert"), dtype=np.float64), tmp_path)
    expected = load_model(golden("bert")).state_dict()
    found = load_model(tmp_path).state_dict()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [("attn.v_proj", {"attention_bias": True}), ("mlp.down_proj", {"mlp_bias": True})],
)
def test_a_bias_made_by_merging_is_saved_for_all_layers_of_its_kind(
    layer: str, settings: dict[str, object], golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("llama"))
    plain = model(IDS).data
    with_bias = dict(model.named_modules())[f"blocks.1.{layer}"]
    assert isinstance(with_bias, Linear)
    with_bias.bias = Parameter(np.ones(with_bias.out_features, np.float32))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_allclose(again(IDS).data, model(IDS).data, atol=1e-6)
    assert np.abs(again(IDS).data - plain).max() > 1e-2
    assert saved_config(tmp_path).items() >= settings.items()


def test_a_bias_unknown_to_the_family_is_refused(golden: Golden, tmp_path: Path) -> None:
    model = load_model(golden("llama"))
    assert isinstance(model.lm_head, Linear)
    model.lm_head.bias = Parameter(np.zeros(model.lm_head.out_features, np.float32))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint has:\n  - lm_head\.bias: unknown to llama"
    ):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_created_and_its_model_is_replaced_if_asked(
    golden: Golden, tmp_path: Path
) -> None:
    folder, other = tmp_path / "new" / "model", load_model(golden("llama"))
    save_model(load_model(golden("gpt2")), str(folder))
    (folder / "tokenizer.json").touch()
    message = r"there is a model in it \(config\.json\): name another .* or pass overwrite=True"
    with pytest.raises(ConfigError, match=message):
        save_model(other, folder)
    assert load_config(folder).model_type == "gpt2"
    save_model(other, folder, overwrite=True)
    assert load_config(folder).model_type == "llama"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_new_head_on_a_bare_encoder_is_saved_with_its_labels(
    golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("bert"))
    model.with_classifier(["no", "yes"], pooling="cls")
    save_model(model, tmp_path)
    config = saved_config(tmp_path)
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["label2id"] == {"no": 0, "yes": 1}
    assert not (tmp_path / "modules.json").exists(), "it is transformers' own head"
    np.testing.assert_array_equal(load_model(tmp_path)(IDS).data, model(IDS).data)


CLASSES = {"gpt2": "GPT2Model", "llama": "LlamaModel", "llama3-tied": "LlamaModel"}
OWN_HEADS = [
    *itertools.product(CLASSES, ["mean", "cls"]),
    *itertools.product(["bert", "bert-no-pooler"], ["mean", "last"]),
    ("bert-no-pooler", "cls"),
]


@pytest.mark.parametrize(("name", "pooling"), OWN_HEADS)
def test_a_head_unknown_to_transformers_is_saved_beside_the_bare_model(
    golden: Golden, tmp_path: Path, name: str, pooling: str
) -> None:
    model = load_model(golden(name))
    model.with_classifier(3, pooling=pooling)
    save_model(model, tmp_path)
    config = saved_config(tmp_path)
    assert config["architectures"] == [CLASSES.get(name, "BertModel")]
    assert "classifier_pooling" not in config
    stored = {key.partition(".")[0] for key in read_tensors(tmp_path)}
    assert not stored & {"classifier", "score", "bert", "transformer", "model"}
    again = load_model(tmp_path)
    assert again.config == load_config(tmp_path)
    assert (again.config.pooling, again.config.sentence_transformers) == (pooling, True)
    np.testing.assert_array_equal(again(IDS).data, model(IDS).data)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama3-tied", "bert", "bert-no-pooler"])
def test_the_usual_head_is_saved_as_transformers_class(
    golden: Golden, tmp_path: Path, name: str
) -> None:
    model = load_model(golden(name))
    model.with_classifier(3)
    save_model(model, tmp_path)
    config, stored = saved_config(tmp_path), read_tensors(tmp_path)
    family = {"gpt2": "GPT2", "llama": "Llama", "bert": "Bert"}[model.config.model_type]
    assert config["architectures"] == [f"{family}ForSequenceClassification"]
    assert not (tmp_path / "modules.json").exists()
    heads = {key for key in stored if key.partition(".")[0] in ("classifier", "score", "bert")}
    if family == "Bert":
        assert {"classifier.bias", "bert.pooler.dense.weight"} <= heads
    else:
        assert heads == {"score.weight"}
    again = load_model(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS).data, model(IDS).data)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-no-pooler"])
def test_a_head_that_was_written_under_transformers_class_is_still_read(
    golden: Golden, tmp_path: Path, name: str, pooling: str
) -> None:
    model = load_model(golden(name))
    model.with_classifier(3, pooling=pooling)
    expected = model(IDS).data
    save_model(model, tmp_path / "new")
    old, bare = saved_config(tmp_path / "new"), read_tensors(tmp_path / "new")
    dense = read_header(tmp_path / "new" / "2_Dense" / "model.safetensors")
    family = {"gpt2": "GPT2", "llama": "Llama", "bert": "Bert"}[model.config.model_type]
    old |= {
        "architectures": [f"{family}ForSequenceClassification"],
        "classifier_pooling": pooling,
    }
    prefix, head = {
        "gpt2": ("transformer", "score"),
        "llama": ("model", "score"),
        "bert": ("bert", "classifier"),
    }[model.config.model_type]
    stored = {f"{prefix}.{key}": tensor for key, tensor in bare.items()}
    stored |= {key.replace("linear", head): tensor for key, tensor in dense.items()}
    arrays = {key: tensor.read(np.dtype(np.float32)) for key, tensor in stored.items()}
    write_tensors(tmp_path / "model.safetensors", arrays, "float32")
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = load_model(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS).data, expected)


def test_an_adapted_model_is_refused_by_the_names_of_its_modules(
    golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("gpt2"))
    projection = model.blocks[1].mlp.get_child("up_proj")  # type: ignore[attr-defined]
    model.blocks[1].mlp.set_child("up_proj", Doubled.of(projection.weight, projection.bias))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError) as caught:
        save_model(model, tmp_path)
    assert str(caught.value).splitlines() == [
        "only a plain model can be saved; merge or remove adapters first:",
        "  - blocks.1.mlp.up_proj: expected Linear, got Doubled",
    ]
    assert not list(tmp_path.iterdir())


def test_unexpected_and_missing_modules_are_refused(golden: Golden, tmp_path: Path) -> None:
    model = load_model(golden("bert"))
    model.lm_head = Linear(16, 60)
    model.pooler = None
    with pytest.raises(CheckpointError) as caught:
        save_model(model, tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  - lm_head: expected no module, got Linear",
        "  - pooler is missing",
    ]


def test_a_model_without_a_family_is_refused(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=4,
    )
    with pytest.raises(ConfigError, match="no model_type, expected one of gpt2, llama, bert"):
        save_model(Transformer(config), tmp_path)


def test_a_config_that_the_family_cannot_express_is_refused(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=4,
        model_type="gpt2",
        norm="rms_norm",
        positions="rotary",
    )
    with pytest.raises(ConfigError) as caught:
        save_model(Transformer(config), tmp_path)
    assert str(caught.value).splitlines() == [
        "invalid config for a gpt2 checkpoint:",
        "  - norm='rms_norm' would read back as 'layer_norm'",
        "  - positions='rotary' would read back as 'learned'",
        "  - packed_qkv=False would read back as True",
    ]


def test_a_head_unknown_to_the_family_is_refused(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=4,
        model_type="bert",
    )
    with pytest.raises(ConfigError, match="bert has no architecture with a head of kind 'lm'"):
        save_model(Transformer(config), tmp_path)


def test_an_unknown_dtype_is_refused(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype: expected one of float32, float16, bfloat16, got"):
        save_model(load_model(golden("gpt2")), tmp_path, dtype="int8")  # type: ignore[arg-type]


def test_numbers_too_large_for_the_dtype_leave_the_old_files(
    golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("gpt2"))
    save_model(model, tmp_path)
    model.state_dict()["blocks.0.attn.qkv_proj.weight"][3, 5] = 1e6
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.weight has numbers too large"):
        save_model(model, tmp_path, dtype="float16", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert saved_config(tmp_path)["torch_dtype"] == "float32"
    assert load_model(tmp_path).state_dict()["blocks.0.attn.qkv_proj.weight"][3, 5] != 1e6


def test_a_folder_that_cannot_be_written_is_an_error(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file cannot be written: File exists"):
        save_model(load_model(golden("gpt2")), tmp_path / "file")
