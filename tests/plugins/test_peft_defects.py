"""Defects of Hugging Face PEFT 0.21.2, done right: the rows of the table in docs/files.md.

tests/interop/test_peft_defects.py shows it in PEFT itself.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import (
    FAMILIES,
    GPT2,
    IDS,
    LLAMA,
    Snapshot,
    logits,
    lora_host,
    shake,
    small,
)
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import (
    AdapterWarning,
    CheckpointError,
    ConfigError,
    PeftError,
    TargetError,
)
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft_lora import LoraConfig, LoraLinear
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_qlora import QuantizeConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"])
UNTIED = replace(GPT2, tie_word_embeddings=False)


def trained(config: LoraConfig = LORA, shape: TransformerConfig = LLAMA) -> PeftModel:
    peft = get_peft_model(small(shape), config, adapter_name="a", host=lora_host())
    shake(peft, 1)
    return peft


def another(peft: PeftModel, config: LoraConfig = LORA) -> PeftModel:
    peft.add_adapter("b", config)
    peft.set_adapter("b")
    shake(peft, 2)
    return peft


def updates(peft: PeftModel, name: str) -> dict[str, Array]:
    peft.set_adapter(name)
    layers = {r.seam.path: r.after for r in peft.record.rewrites}
    return {path: layer.delta() for path, layer in layers.items() if isinstance(layer, LoraLinear)}


def assert_sum_is_exact(peft: PeftModel) -> None:
    peft.add_weighted_adapter(["a", "b"], [0.6, 0.4], "sum")
    one, other, both = (updates(peft, name) for name in ("a", "b", "sum"))
    for path, update in both.items():
        np.testing.assert_allclose(update, 0.6 * one[path] + 0.4 * other[path], atol=1e-6)


def test_the_weighted_combination_of_two_adapters_is_exact() -> None:
    assert_sum_is_exact(another(trained()))


def test_rslora_sources_are_not_scaled_by_the_root_of_their_rank_once_more() -> None:
    rslora = replace(LORA, r=4, use_rslora=True)
    assert_sum_is_exact(another(trained(rslora), rslora))


def test_a_pissa_source_leaves_the_bases_weights_as_they_are() -> None:
    pissa = replace(LORA, init_lora_weights="pissa")
    base = logits(small())
    peft = another(trained(pissa), pissa)
    before = {path: p.data for path, p in peft.base_model.named_parameters() if ".base_l" in path}
    copies = {path: array.copy() for path, array in before.items()}
    assert_sum_is_exact(peft)
    for path, array in before.items():
        np.testing.assert_array_equal(array, copies[path])
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), base)


def test_a_dora_of_weight_one_is_unchanged_and_other_weights_are_refused() -> None:
    peft = trained(replace(LORA, use_dora=True))
    expected = logits(peft)
    peft.add_weighted_adapter(["a"], [1.0], "same")
    peft.set_adapter("same")
    np.testing.assert_array_equal(logits(peft), expected)
    with pytest.raises(PeftError, match="use_dora"):
        peft.add_weighted_adapter(["a"], [0.5], "half")


ORDERED = {"q_proj": 4, ".*_proj": 1}  # sorted, the general pattern would come first


@pytest.mark.parametrize(
    ("patterns", "config"),
    [
        ("alpha_pattern", replace(LORA, alpha_pattern=ORDERED)),
        ("rank_pattern", replace(LORA, rank_pattern=ORDERED)),
    ],
)
def test_overlapping_patterns_mean_the_same_after_a_reload(
    patterns: str, config: LoraConfig, tmp_path: Path
) -> None:
    peft = get_peft_model(small(), config, host=lora_host())
    shake(peft)
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    stored = json.loads((tmp_path / CONFIG).read_text())[patterns]
    assert list(stored) == list(ORDERED)


@pytest.mark.parametrize(
    "config",
    [
        replace(LORA, target_modules=["c_attn", "wte"]),
        replace(LORA, target_modules=["c_attn", "lm_head"]),
        replace(LORA, target_modules=["wte", "lm_head"]),
        replace(LORA, target_modules=["c_attn"], modules_to_save=["wte"]),
        replace(LORA, target_modules=["c_attn"], modules_to_save=["lm_head"]),
        replace(LORA, target_modules=["c_attn"], trainable_token_indices={"lm_head": [3]}),
    ],
)
def test_adapting_one_of_two_tied_modules_is_refused_and_a_stored_one_merged_apart(
    config: LoraConfig, tmp_path: Path
) -> None:
    model = small(GPT2)
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=r"would untie them|share one weight"):
        get_peft_model(model, config, host=lora_host())
    before.assert_unchanged(model)
    get_peft_model(small(UNTIED), config, host=lora_host()).save_pretrained(tmp_path)
    if config.token_ids():
        with pytest.raises(PeftError, match="share one weight"):
            PeftModel.from_pretrained(model, tmp_path, host=lora_host())
        before.assert_unchanged(model)
        return
    with pytest.warns(AdapterWarning, match="they are parted"):
        loaded = PeftModel.from_pretrained(model, tmp_path, host=lora_host())
    wanted = logits(loaded)
    np.testing.assert_allclose(logits(loaded.merge_and_unload()), wanted, atol=1e-5)


def test_trained_tokens_are_merged_into_both_sides_of_a_tie(tmp_path: Path) -> None:
    config = replace(LORA, target_modules=["c_attn"], trainable_token_indices=[3, 14])
    peft = trained(config, GPT2)
    expected = logits(peft)
    merged = peft.merge_and_unload()
    assert merged.lm_head is not None
    np.testing.assert_allclose(logits(merged), expected, atol=2e-6)
    save_model(merged, tmp_path)
    saved = load_model(tmp_path)
    assert saved.config.tie_word_embeddings
    np.testing.assert_allclose(logits(saved), expected, atol=2e-6)


def test_modules_to_save_names_whole_parts_of_paths() -> None:
    peft = trained(replace(LORA, modules_to_save=["norm"]))
    saved = {rewrite.seam.path for rewrite in peft.record.rewrites if rewrite.saved}
    assert saved == {"model.norm"}


def test_no_adapter_is_confused_with_a_module_of_its_name(tmp_path: Path) -> None:
    names = ["default", "q_proj", "lora_A", "weight", "model"]
    peft = get_peft_model(small(), LORA, host=lora_host())
    for name in names[1:]:
        peft.add_adapter(name, LORA)
    for seed, name in enumerate(names):
        peft.set_adapter(name)
        shake(peft, seed)
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=lora_host())
    for name in names:
        if name != "default":
            loaded.load_adapter(tmp_path / name, name)
        loaded.set_adapter(name)
        peft.set_adapter(name)
        np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    get_peft_model(small(), LORA, host=lora_host()).save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(values | {"use_nothing": None, "use_other": True}))
    with pytest.raises(ConfigError, match=r"unknown settings of .*:\n  - use_other = True"):
        PeftModel.from_pretrained(small(), tmp_path, host=lora_host())


def test_a_loaded_prefix_can_be_trained_further(tmp_path: Path) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True)
    get_peft_model(small(), config).save_pretrained(tmp_path)
    for name in ("reparameterization.safetensors", "recipe.json"):  # as PEFT writes it
        (tmp_path / name).unlink()
    peft = PeftModel.from_pretrained(small(), tmp_path, is_trainable=True)
    assert [p.shape for p in peft.trainable_parameters()] == [(2, 2 * 3 * 2 * 4)]
    peft.loss(IDS, IDS).backward()
    assert all(p.grad is not None for p in peft.trainable_parameters())


@pytest.mark.parametrize("wrong", ["all keys", "one key more", "half of the modules"])
def test_loading_never_drops_tensors_silently(wrong: str, tmp_path: Path) -> None:
    get_peft_model(small(), LORA, host=lora_host()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    if wrong == "all keys":
        tensors = {name.replace("base_model", "model"): array for name, array in tensors.items()}
    elif wrong == "one key more":
        tensors["base_model.model.more"] = np.zeros(1, np.float32)
    else:
        settings = json.loads((tmp_path / CONFIG).read_text())
        (tmp_path / CONFIG).write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
    save_file(tensors, tmp_path / WEIGHTS)
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match="unexpected: "):
        PeftModel.from_pretrained(model, tmp_path, host=lora_host())
    before.assert_unchanged(model)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (replace(LORA, target_modules=["q_proj", "v_porj"]), "'v_porj'.*did you mean 'v_proj'"),
        (replace(LORA, modules_to_save=["lm_haed"]), "'lm_haed'.*did you mean 'lm_head'"),
        (replace(LORA, target_modules=["q_proj", "norm"]), "'norm' names 1 modules.*cannot adapt"),
    ],
)
def test_a_misspelt_target_is_an_error(config: LoraConfig, problem: str) -> None:
    with pytest.raises(TargetError, match=problem):
        trained(config)


@pytest.mark.parametrize("on_4_bits", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_of_b_is_merged_with_its_scaling(family: str, on_4_bits: bool) -> None:
    names = {"gpt2": "c_attn", "llama": "q_proj", "bert": "query"}
    config = LoraConfig(r=2, lora_alpha=8, lora_bias=True, target_modules=[names[family]])
    recipe = [QuantizeConfig(block_size=32), config] if on_4_bits else [config]
    peft = get_peft_model(small(FAMILIES[family]), recipe)
    shake(peft, 1)
    expected = logits(peft)
    np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=2e-6)


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_unmerging_and_disabling_while_merged_are_bit_exact(
    more: dict[str, bool | str],
) -> None:
    base = logits(small())
    peft = trained(replace(LORA, **more))  # type: ignore[arg-type]
    expected = logits(peft)
    peft.merge_adapter()
    merged = logits(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), base)
    np.testing.assert_array_equal(logits(peft), merged)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), expected)
    np.testing.assert_array_equal(logits(peft.unload()), base)


def test_olora_starts_on_a_fused_projection() -> None:
    base = logits(small(GPT2))
    config = LoraConfig(r=2, init_lora_weights="olora", target_modules=["c_attn"])
    peft = get_peft_model(small(GPT2), config, host=lora_host())
    np.testing.assert_allclose(logits(peft), base, atol=2e-6)


def test_two_doras_act_and_merge_in_the_named_order() -> None:
    dora = replace(LORA, use_dora=True)
    peft = another(trained(dora), dora)
    outputs = []
    for names in (["a", "b"], ["b", "a"]):
        peft.set_adapter(names)
        expected = logits(peft)
        peft.merge_adapter()
        np.testing.assert_allclose(logits(peft), expected, atol=2e-6)
        peft.unmerge_adapter()
        outputs.append(expected)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-5


def test_the_given_config_is_never_changed(tmp_path: Path) -> None:
    config = LoraConfig(r=2, init_lora_weights="olora")
    before = dict(vars(config))
    trained(config, GPT2).save_pretrained(tmp_path)
    assert vars(config) == before
