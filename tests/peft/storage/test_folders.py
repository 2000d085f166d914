import json
import re
import struct
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tinygrad_peft_adapter.plugin
from tests.peft.small import (
    BERT,
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    LLAMA,
    ShiftConfig,
    Snapshot,
    block_of,
    logits,
    lora_host,
    plugin,
    shake,
    shift,
    small,
)
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import (
    AdapterWarning,
    CheckpointError,
    ConfigError,
    PeftError,
    PluginError,
    TargetError,
)
from tinygrad_peft.nn import Linear, Transformer, TransformerConfig
from tinygrad_peft.nn.attention import PackedAttention
from tinygrad_peft.nn.block import FeedForward
from tinygrad_peft.peft import AdapterFolder, Host, PeftConfig, PeftModel, get_peft_model
from tinygrad_peft.peft.recipes.record import Record
from tinygrad_peft.peft.storage.base_model import Head
from tinygrad_peft.peft.storage.examination import Examination
from tinygrad_peft_lora import LoraConfig

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
STACK: list[PeftConfig] = [LORA, ShiftConfig(target_modules=["q_proj"]), replace(LORA, r=3)]


def host() -> Host:
    made = lora_host()
    made.register(plugin(ShiftConfig, adapt=shift), "shift")
    made.register(tinygrad_peft_adapter.plugin, "adapter")
    return made


def adapted(
    config: TransformerConfig = LLAMA, recipe: PeftConfig | list[PeftConfig] = LORA
) -> PeftModel:
    peft = get_peft_model(small(config), recipe, host=host())
    shake(peft)
    return peft


def load(directory: Path, config: TransformerConfig = LLAMA) -> PeftModel:
    return PeftModel.from_pretrained(small(config), directory, host=host())


def saved(
    tmp_path: Path,
    config: TransformerConfig = LLAMA,
    recipe: PeftConfig | list[PeftConfig] = LORA,
) -> Path:
    adapted(config, recipe).save_pretrained(tmp_path)
    return tmp_path


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix("base_model.model."): array.shape
        for name, array in load_file(path / WEIGHTS).items()
    }


def read_head(path: Path) -> Head | None:
    return AdapterFolder.read(path, host()).head()


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, changes: Mapping[str, AnyArray | None]) -> None:
    """Replace, add or (with None) drop tensors of an adapter."""
    tensors = {**load_file(path / WEIGHTS), **changes}
    kept = {name: array for name, array in tensors.items() if array is not None}
    save_file(kept, path / WEIGHTS, metadata={"format": "pt"})


def refused(path: Path, *parts: str, kind: type[Exception] = CheckpointError) -> str:
    """The message of loading, which leaves the model as it was."""
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(kind) as caught:
        PeftModel.from_pretrained(model, path, host=host())
    before.assert_unchanged(model)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# ---------- there and back ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2),
        LoraConfig(r=2, target_modules="all-linear", use_rslora=True, lora_alpha=3),
        LoraConfig(r=2, bias="all"),
        LoraConfig(r=2, bias="lora_only"),
        LoraConfig(r=2, layers_to_transform=1, rank_pattern={".*": 3}),
    ],
)
def test_a_loaded_adapter_gives_the_same_logits(
    family: str, config: LoraConfig, tmp_path: Path
) -> None:
    peft = adapted(FAMILIES[family], config)
    peft.save_pretrained(tmp_path)
    loaded = load(tmp_path, FAMILIES[family])
    assert loaded.recipe == (config,)
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_a_stack_of_steps_is_loaded_in_its_order(tmp_path: Path) -> None:
    peft = adapted(LLAMA, STACK)
    peft.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.recipe == tuple(STACK)
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_what_is_saved_whole_is_stored_as_a_checkpoint_has_it(tmp_path: Path) -> None:
    # GPT-2's weights are (in, out) there, and attn.c_proj is square, so that no shape would tell.
    config = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["attn.c_proj", "mlp"])
    peft = adapted(GPT2, config)
    peft.save_pretrained(tmp_path)
    stored, block = load_file(tmp_path / WEIGHTS), block_of(peft.base_model)
    assert isinstance(block.attn, PackedAttention)
    assert isinstance(block.mlp, FeedForward)
    places = {"attn.c_proj": block.attn.o_proj, "mlp.c_fc": block.mlp.up_proj}
    for name, layer in places.items():
        assert isinstance(layer, Linear)
        found = stored[f"base_model.model.transformer.h.0.{name}.weight"]
        np.testing.assert_array_equal(found, layer.weight.data.T)
    np.testing.assert_array_equal(logits(load(tmp_path, GPT2)), logits(peft))


def test_saved_modules_are_loaded_as_well(tmp_path: Path) -> None:
    config = LoraConfig(r=2, modules_to_save=["classifier", "pooler.dense"])
    peft = adapted(BERT_CLASSIFIER, config)
    peft.save_pretrained(tmp_path)
    np.testing.assert_array_equal(logits(load(tmp_path, BERT_CLASSIFIER)), logits(peft))


def test_a_merged_adapter_is_saved_as_the_adapter(tmp_path: Path) -> None:
    peft = adapted()
    expected = logits(peft)
    peft.merge_adapter()
    peft.save_pretrained(tmp_path)
    np.testing.assert_array_equal(logits(load(tmp_path)), expected)


def test_a_loaded_adapter_is_frozen_unless_it_shall_be_trained(tmp_path: Path) -> None:
    saved(tmp_path)
    assert load(tmp_path).trainable_parameters() == []
    trainable = PeftModel.from_pretrained(small(), tmp_path, is_trainable=True, host=host())
    assert len(trainable.trainable_parameters()) == 3 * 2 * 2
    model = small()
    PeftModel.from_pretrained(model, tmp_path, host=host()).unload()
    assert all(p.requires_grad for p in model.parameters())


def test_weights_are_loaded_into_the_dtype_of_the_model(tmp_path: Path) -> None:
    saved(tmp_path)
    loaded = PeftModel.from_pretrained(small(LLAMA, np.float64), tmp_path, host=host())
    assert {p.dtype for p in loaded.parameters()} == {np.dtype(np.float64)}


def test_installed_plugins_read_an_adapter(tmp_path: Path) -> None:
    peft = adapted()
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), str(tmp_path))
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_a_parameter_without_axes_keeps_its_shape(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, ShiftConfig(target_modules=["o_proj"]))
    assert set(shapes(tmp_path).values()) == {()}
    load(tmp_path)


def test_the_order_of_patterns_survives(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2, ".*_proj": 3},
        alpha_pattern={"v_proj": 1.0, ".*_proj": 8.0},
    )
    peft = adapted(LLAMA, config)
    peft.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    (read,) = loaded.recipe
    assert isinstance(read, LoraConfig)
    assert list(read.alpha_pattern) == ["v_proj", ".*_proj"]
    np.testing.assert_array_equal(logits(loaded), logits(peft))


# ---------- what is on disk ----------


def test_one_step_lies_in_the_folder_itself_as_peft_has_it(tmp_path: Path) -> None:
    saved(tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        CONFIG,
        WEIGHTS,
        RECIPE,
    ]


def test_what_is_null_by_default_is_not_written_since_peft_may_not_have_it(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, LoraConfig(target_modules=["q_proj"], layers_to_transform=1))
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["layers_to_transform"] == 1
    assert written["base_model_name_or_path"] is None  # which PEFT writes for every method
    assert not {"layers_pattern", "exclude_modules"} & written.keys()


def test_several_steps_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, STACK)
    names = ["0-lora", "1-shift", "2-lora"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, RECIPE]
    for name in names:
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [CONFIG, WEIGHTS]
    recipe = json.loads((tmp_path / RECIPE).read_text())
    assert recipe["steps"] == names
    assert recipe["base"]["model_type"] == "llama"


def test_saving_over_another_recipe_leaves_nothing_of_it(tmp_path: Path) -> None:
    saved(tmp_path)
    saved(tmp_path, LLAMA, STACK)
    assert not (tmp_path / WEIGHTS).exists()
    assert not (tmp_path / CONFIG).exists()
    assert load(tmp_path).recipe == tuple(STACK)
    saved(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS, RECIPE]
    assert load(tmp_path).recipe == (LORA,)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "0-notes").mkdir()
    saved(tmp_path, LLAMA, STACK)
    saved(tmp_path)
    assert (tmp_path / "metrics.json").read_text() == "{}"
    assert (tmp_path / "0-notes").is_dir()


def test_keys_and_shapes_are_pefts_for_llama(tmp_path: Path) -> None:
    saved(tmp_path)
    assert shapes(tmp_path) == {
        f"model.layers.{n}.self_attn.{name}": shape
        for n in range(3)
        for name, shape in {
            "q_proj.lora_A.weight": (2, 16),
            "q_proj.lora_B.weight": (16, 2),
            "v_proj.lora_A.weight": (2, 16),
            "v_proj.lora_B.weight": (8, 2),
        }.items()
    }


def test_keys_and_shapes_are_pefts_for_gpt2_with_all_biases(tmp_path: Path) -> None:
    saved(tmp_path, GPT2, LoraConfig(r=4, bias="all"))
    of_layer = {
        "attn.c_attn.base_layer.bias": (48,),
        "attn.c_attn.lora_A.weight": (4, 16),
        "attn.c_attn.lora_B.weight": (48, 4),
        "attn.c_proj.bias": (16,),
        "ln_1.bias": (16,),
        "ln_2.bias": (16,),
        "mlp.c_fc.bias": (32,),
        "mlp.c_proj.bias": (16,),
    }
    expected = {f"transformer.h.{n}.{k}": s for n in (0, 1) for k, s in of_layer.items()}
    assert shapes(tmp_path) == {**expected, "transformer.ln_f.bias": (16,)}


def test_keys_and_shapes_are_pefts_for_bert_with_biases_and_saved_modules(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=["query"], bias="lora_only", modules_to_save=["classifier"]
    )
    saved(tmp_path, BERT_CLASSIFIER, config)
    of_query = {"base_layer.bias": (16,), "lora_A.weight": (2, 16), "lora_B.weight": (16, 2)}
    assert shapes(tmp_path) == {
        **{
            f"bert.encoder.layer.{n}.attention.self.query.{name}": shape
            for n in (0, 1)
            for name, shape in of_query.items()
        },
        "classifier.weight": (3, 16),
        "classifier.bias": (3,),
    }


def test_a_bare_encoder_has_no_prefix(tmp_path: Path) -> None:
    saved(tmp_path, BERT, LoraConfig(r=2))
    assert all(name.startswith("encoder.layer.") for name in shapes(tmp_path))


def test_the_metadata_is_pefts(tmp_path: Path) -> None:
    saved(tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("config", "head", "task"),
    [
        (LLAMA, [], "CAUSAL_LM"),
        (BERT_CLASSIFIER, ["classifier"], "SEQ_CLS"),
        # Of an adapter for SEQ_CLS PEFT demands the head's weights, which are not in this one.
        (BERT_CLASSIFIER, [], "FEATURE_EXTRACTION"),
        (BERT, [], "FEATURE_EXTRACTION"),
    ],
)
def test_the_config_says_what_the_model_is_for(
    config: TransformerConfig, head: list[str], task: str, tmp_path: Path
) -> None:
    saved(tmp_path, config, LoraConfig(modules_to_save=head))
    values = json.loads((tmp_path / CONFIG).read_text())
    assert values["task_type"] == task
    assert values["inference_mode"] is True
    assert values["peft_type"] == "LORA"
    assert list(values) == sorted(values)


@pytest.mark.parametrize("recipe", [LORA, STACK])
def test_saving_twice_gives_the_same_bytes(
    recipe: PeftConfig | list[PeftConfig], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, LLAMA, recipe)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) in (3, 7)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_head_of_a_classifier_is_kept(tmp_path: Path) -> None:
    config = replace(BERT_CLASSIFIER, pooling="mean", label_names=("a", "b", "c"))
    saved(tmp_path, config, LoraConfig())
    head = read_head(tmp_path)
    assert head is not None
    assert (head.num_labels, head.pooling, head.label_names) == (3, "mean", ("a", "b", "c"))


def test_a_model_without_a_classifier_has_no_head_to_keep(tmp_path: Path) -> None:
    assert read_head(saved(tmp_path)) is None
    (tmp_path / RECIPE).unlink()
    assert read_head(tmp_path) is None


# ---------- writes that fail ----------


def test_a_write_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = adapted()
    peft.save_pretrained(tmp_path)
    expected = logits(peft)
    shake(peft, seed=3)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written: no space left"):
        peft.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS, RECIPE]
    np.testing.assert_array_equal(logits(load(tmp_path)), expected)


# ---------- folders that PEFT wrote ----------


def test_a_folder_without_a_recipe_is_read_as_peft_writes_it(tmp_path: Path) -> None:
    peft = adapted()
    peft.save_pretrained(tmp_path)
    (tmp_path / RECIPE).unlink()
    edit_json(
        tmp_path / CONFIG, modules_to_save=None, megatron_core="megatron.core", peft_version="0.21"
    )
    loaded = load(tmp_path)
    assert loaded.recipe == (LORA,)
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_heads_that_peft_names_for_every_classifier_are_read_where_they_are(
    tmp_path: Path,
) -> None:
    config = LoraConfig(r=2, modules_to_save=["classifier"])
    peft = adapted(BERT_CLASSIFIER, config)
    peft.save_pretrained(tmp_path)
    edit_json(tmp_path / CONFIG, modules_to_save=["classifier", "score"])
    loaded = load(tmp_path, BERT_CLASSIFIER)
    assert loaded.recipe == (config,)
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    edit_json(tmp_path / CONFIG, modules_to_save=["classifier", "scorn"])
    with pytest.warns(AdapterWarning, match="'scorn' matches no module"):
        load(tmp_path, BERT_CLASSIFIER)


def test_the_biases_that_peft_writes_twice_more_are_passed_over(tmp_path: Path) -> None:
    config = LoraConfig(r=2, bias="all", modules_to_save=["classifier"])
    peft = adapted(BERT_CLASSIFIER, config)
    peft.save_pretrained(tmp_path)
    place = "base_model.model.classifier"
    edit_tensors(
        tmp_path,
        {f"{place}.{w}.bias": np.ones(3) for w in ("modules_to_save", "original_module")},
    )
    np.testing.assert_array_equal(logits(load(tmp_path, BERT_CLASSIFIER)), logits(peft))


@pytest.mark.parametrize(("code", "dtype"), [("F16", np.float16), ("F64", np.float64)])
def test_tensors_of_other_float_types_are_read(
    code: str, dtype: type[np.floating], tmp_path: Path
) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    edit_tensors(tmp_path, {name: array.astype(dtype) for name, array in tensors.items()})
    for name, parameter in load(tmp_path).record.named_parameters(0).items():
        stored = tensors[f"base_model.model.{name}"].astype(dtype)
        np.testing.assert_array_equal(parameter.data, stored.astype(np.float32))


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    write_bfloat16(tmp_path / WEIGHTS, tensors)
    for name, parameter in load(tmp_path).record.named_parameters(0).items():
        upper = tensors[f"base_model.model.{name}"].view("<u4") & 0xFFFF0000
        np.testing.assert_array_equal(parameter.data, upper.view("<f4"))


def write_bfloat16(path: Path, tensors: Mapping[str, AnyArray]) -> None:
    """A safetensors file of the upper halves of float32 arrays."""
    header, content = {}, b""
    for name, array in tensors.items():
        half = (array.view("<u4") >> 16).astype("<u2").tobytes()
        offsets = [len(content), len(content) + len(half)]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": offsets}
        content += half
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


# ---------- what does not fit ----------


def test_all_problems_with_the_tensors_are_one_error(tmp_path: Path) -> None:
    saved(tmp_path)
    place = "base_model.model.model.layers.{}.self_attn.{}"
    edit_tensors(
        tmp_path,
        {
            place.format(0, "q_proj.lora_A.weight"): None,
            place.format(0, "q_porj.lora_A.weight"): np.zeros((2, 16), np.float32),
            place.format(1, "q_proj.lora_A.weight"): np.zeros((3, 16), np.float32),
            place.format(2, "v_proj.lora_B.weight"): np.zeros((8, 2), np.int64),
        },
    )
    refused(
        tmp_path,
        "missing: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (2, 16)",
        "unexpected: base_model.model.model.layers.0.self_attn.q_porj.lora_A.weight (2, 16)",
        "layers.1.self_attn.q_proj.lora_A.weight is (3, 16), expected (2, 16)",
        "wrong dtype: base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight is I64",
    )


def test_the_step_of_a_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, STACK)
    name = "base_model.model.model.layers.0.self_attn.q_proj.shift"
    edit_tensors(tmp_path / "1-shift", {name: None})
    refused(tmp_path, f"1-shift: missing: {name} ()")


def test_an_adapter_of_another_model_names_the_differences(tmp_path: Path) -> None:
    saved(tmp_path, replace(LLAMA, hidden_size=32, head_dim=8, num_hidden_layers=3))
    message = refused(tmp_path, "was made for another model: hidden_size: expected 32, got 16")
    assert "model_type" not in message


def test_weights_that_fit_a_model_with_other_heads_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, replace(LLAMA, num_attention_heads=8, num_key_value_heads=4, head_dim=2))
    refused(tmp_path, "was made for another model: num_attention_heads: expected 8, got 4")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pooling": "mean"}, "pooling: expected 'mean', got 'cls'"),
        (
            {"label_names": ("c", "b", "a")},
            "label_names: expected ['c', 'b', 'a'], got ['a', 'b', 'c']",
        ),
    ],
)
def test_weights_that_fit_a_different_head_are_refused(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    config = replace(BERT_CLASSIFIER, label_names=("a", "b", "c"))
    saved(tmp_path, replace(config, **change), LoraConfig(r=2))
    model = small(config)
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        PeftModel.from_pretrained(model, tmp_path, host=host())
    before.assert_unchanged(model)


def test_the_same_head_is_not_called_another(tmp_path: Path) -> None:
    config = replace(BERT_CLASSIFIER, label_names=("a", "b", "c"))
    saved(tmp_path, config, LoraConfig(r=2))
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    edit_tensors(tmp_path, {name: None})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config)
    assert "made for" not in str(caught.value)


def test_targets_that_the_model_does_not_have_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, GPT2, LoraConfig(target_modules=["c_attn"]))
    (tmp_path / RECIPE).unlink()  # which would tell that it is of another kind of model
    refused(tmp_path, "step 0: 'c_attn' matches no module", kind=TargetError)


def test_unknown_settings_are_all_named_with_the_file(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_json(tmp_path / CONFIG, use_qalora=True, lora_alhpa=3, use_bdlora=False)
    message = refused(tmp_path, str(tmp_path / CONFIG), "use_qalora = True", kind=ConfigError)
    assert "lora_alhpa = 3; did you mean 'lora_alpha'" in message
    assert "use_bdlora" not in message


def test_a_method_of_no_plugin_is_named_with_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_json(tmp_path / CONFIG, peft_type="LORE")
    refused(tmp_path, CONFIG, "the method 'lore'; did you mean 'lora'?", kind=PluginError)
    with pytest.raises(PluginError, match="there are: none"):
        PeftModel.from_pretrained(small(), tmp_path, host=Host())


def test_a_config_without_a_method_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    del values["peft_type"]
    (tmp_path / CONFIG).write_text(json.dumps(values))
    refused(tmp_path, CONFIG, "peft_type", kind=CheckpointError)
    edit_json(tmp_path / CONFIG, peft_type=5)
    refused(tmp_path, CONFIG, "peft_type: expected a method's name, got 5", kind=CheckpointError)


# ---------- broken files ----------


@pytest.mark.parametrize("name", [CONFIG, RECIPE])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a": 1} x']
)
def test_json_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (saved(tmp_path) / name).write_bytes(content)
    refused(tmp_path, str(tmp_path / name))


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_weights_that_are_cut_off_are_named(length: int, tmp_path: Path) -> None:
    path = saved(tmp_path) / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    refused(tmp_path, str(path), "truncated")


def test_weights_that_are_not_safetensors_are_named(tmp_path: Path) -> None:
    (saved(tmp_path) / WEIGHTS).write_bytes(b"PK\x03\x04 a zip file, as torch.save writes")
    refused(tmp_path, str(tmp_path / WEIGHTS))


def test_missing_files_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", f"{tmp_path / 'nowhere'}: no such folder")
    refused(tmp_path, f"expected {RECIPE} or {CONFIG}, got neither")
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    refused(tmp_path, str(tmp_path / WEIGHTS), "does not exist")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refused(
        tmp_path, "adapter_model.bin is a pickle, which can run any code: save it as safetensors"
    )
    (tmp_path / CONFIG).unlink()
    refused(tmp_path, str(tmp_path / CONFIG), "does not exist")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "no such folder")
    with pytest.raises(CheckpointError, match="file"):
        adapted().save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    "steps",
    [
        None,
        [],
        "0-lora",
        {"0": "lora"},
        [1],
        [""],
        [".."],
        ["../elsewhere"],
        ["/etc"],
        ["a/b"],
        ["a/.."],
        [".", "a/"],
        ["a\\b"],
        ["C:a"],
        ["nul\0"],
        [".", "."],
    ],
)
def test_steps_outside_the_folder_are_refused(steps: object, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / RECIPE, steps=steps)
    refused(tmp_path, f"{tmp_path / RECIPE}: steps")


@pytest.mark.parametrize("number", [None, 0, 2, "1", True])
def test_another_format_is_refused(number: object, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / RECIPE, format=number)
    refused(tmp_path, f"expected format 1, got {number!r}")


@pytest.mark.parametrize(
    ("name", "note", "told"),
    [
        ("base", [1], "base: Expected `object`, got `array`"),
        ("base", "llama", "base: Expected `object`, got `str`"),
        ("base", {"vocab_size": "many"}, r"base: Expected `int`, got `str` - at `\$.vocab_size`"),
        ("targets", [1], "targets: Expected `object`, got `array`"),
        ("targets", {".": {"names": 3}}, r"targets: .* - at `\$\[...\]"),
        ("plugins", [3], "plugins: Expected `object`, got `array`"),
        ("plugins", {"lora": 3}, r"plugins: Expected `str`, got `int` - at `\$\[...\]`"),
    ],
)
def test_an_odd_note_is_refused(name: str, note: object, told: str, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / RECIPE, **{name: note})
    with pytest.raises(CheckpointError, match=rf"recipe\.json: {told}"):
        load(tmp_path)


@pytest.mark.parametrize("base", [None, {}])
def test_an_empty_note_of_the_base_matters_to_nobody(base: object, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / RECIPE, base=base)
    load(tmp_path)
    assert read_head(tmp_path) is None
    edit_tensors(tmp_path, {"extra": np.zeros(1, np.float32)})
    refused(tmp_path, "unexpected: extra (1,)")


@pytest.mark.parametrize(
    "base", [{"head": "classification"}, {"head": "classification", "num_labels": "3"}]
)
def test_a_head_that_is_broken_is_an_error(base: dict[str, object], tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / RECIPE, base=base)
    with pytest.raises(CheckpointError, match=r"recipe\.json: base: "):
        read_head(tmp_path)


def test_a_recipe_is_read_without_a_model(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, STACK)
    assert Examination(AdapterFolder.read(tmp_path, host()), None).recipe == tuple(STACK)


# ---------- settings that ask for too much, and other layouts ----------


@pytest.mark.parametrize("rank", [10**9, 2**62])
def test_a_rank_that_the_weights_do_not_have_takes_no_memory(rank: int, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / CONFIG, r=rank)
    model = small()
    tracemalloc.start()
    with pytest.raises(PeftError, match=r"expected at most 1,000,000,000 new elements, got \d"):
        PeftModel.from_pretrained(model, tmp_path, host=host())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 5_000 + ")" * 5_000])
def test_an_expression_that_is_too_large_is_refused(pattern: str, tmp_path: Path) -> None:
    edit_json(saved(tmp_path) / CONFIG, target_modules=pattern)
    refused(tmp_path, "invalid regular expression", kind=ConfigError)


def test_too_little_memory_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(record: Record, step: int) -> None:
        raise MemoryError(record, step)

    saved(tmp_path)
    monkeypatch.setattr(Record, "stored_parameters", too_much)
    refused(tmp_path, f"{tmp_path} needs more memory than is available")


ADAPTERHUB = {"config": {}, "model_type": "gpt2", "name": "task", "version": "adapters.1.3.0"}
MLX = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 8}}


@pytest.mark.parametrize(
    ("values", "weights", "whose"),
    [
        (ADAPTERHUB, "adapter.safetensors", "AdapterHub"),
        (MLX, "adapters.safetensors", "mlx-lm"),
    ],
)
def test_another_layout_is_distinguished_from_pefts(
    values: dict[str, object], weights: str, whose: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    (tmp_path / RECIPE).unlink()
    config = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(json.dumps(values))
    refused(tmp_path, f"{weights} does not exist; {WEIGHTS} belongs to Hugging Face PEFT's layout")
    (tmp_path / WEIGHTS).rename(tmp_path / weights)
    (tmp_path / CONFIG).unlink()
    refused(tmp_path, f"expected {RECIPE} or {CONFIG}, got neither; it holds weights in {whose}'s")
    (tmp_path / CONFIG).write_text(config)
    refused(tmp_path, f"{WEIGHTS} does not exist; {weights} belongs to {whose}'s layout")


def test_a_folder_of_adapters_names_them(tmp_path: Path) -> None:
    for name in ("fr", "de"):
        saved(tmp_path / name)
    refused(tmp_path, "name one of the adapters in it: de, fr")


def test_a_models_folder_is_distinguished_from_an_adapters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "got neither; it is a model's folder")


def test_a_recipe_keeps_all_settings_of_a_base_that_was_read(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    folder = AdapterFolder.read(tmp_path / "a", host())
    assert folder.base is not None
    again = PeftModel.from_pretrained(Transformer(folder.base), folder)
    again.save_pretrained(tmp_path / "b")
    one, other = (json.loads((tmp_path / name / RECIPE).read_text()) for name in "ab")
    assert other == one
