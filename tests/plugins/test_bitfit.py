"""BitFit, a method in its own distribution, beyond the conformance suite."""

from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import FAMILIES, LLAMA, Snapshot, logits, lora_host, shake, small
from tinygrad_peft.errors import PluginError, TargetError
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.peft import Host, PeftModel, count_recipe, get_peft_model, methods_of
from tinygrad_peft_bitfit import BitFitConfig
from tinygrad_peft_lora import LoraConfig


def trained(family: str, config: BitFitConfig) -> PeftModel:
    peft = get_peft_model(small(FAMILIES[family], np.float64), config)
    shake(peft)
    return peft


def test_it_is_found_by_its_entry_point() -> None:
    assert methods_of(Host.installed())["bitfit"] is BitFitConfig


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_it_moves_each_bias_of_the_affine_layers(family: str) -> None:
    peft = trained(family, BitFitConfig())
    before, found = small(FAMILIES[family], np.float64), logits(peft)
    moved = {path: p.data for path, p in peft.record.named_parameters(0).items()}
    paths = {rewrite.seam.path for rewrite in peft.record.rewrites}
    assert paths == {path.removesuffix(".bitfit_b") for path in moved}
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(logits(merged), found, rtol=1e-12, atol=1e-12)
    weights = merged.state_dict()
    changed = {n for n, array in before.state_dict().items() if not (array == weights[n]).all()}
    assert len(changed) == len(moved)
    assert all(name.endswith(".bias") for name in changed)


def test_a_llama_has_no_biases_and_is_refused_unless_layers_are_named(tmp_path: Path) -> None:
    model = small(LLAMA)
    before = Snapshot.of(model)
    with pytest.raises(TargetError, match=r"target_modules: missing.* this model is llama"):
        get_peft_model(model, BitFitConfig())
    before.assert_unchanged(model)
    peft = trained("llama", BitFitConfig(target_modules=["k_proj"]))
    found = logits(peft)
    save_model(peft.merge_and_unload(), tmp_path)
    again = load_model(tmp_path, dtype=np.float64)
    again.eval()
    np.testing.assert_allclose(logits(again), found, atol=1e-6)


def test_parameters_are_counted() -> None:
    config = BitFitConfig(target_modules="all-linear")
    for name, family in FAMILIES.items():
        real = trained(name, config).get_nb_trainable_parameters()
        assert count_recipe(family, config, Host.installed()) == real


def test_a_recipe_whose_plugin_is_missing_says_what_to_install(tmp_path: Path) -> None:
    recipe = [LoraConfig(r=2), BitFitConfig(target_modules=["k_proj"])]
    get_peft_model(small(), recipe, host=Host.installed()).save_pretrained(tmp_path)
    model = small()
    before = Snapshot.of(model)
    message = (
        r"1-bitfit.adapter_config\.json: no installed plugin provides the method 'bitfit'; the "
        r"distribution 'tinygrad-peft-bitfit' does: install it \(there are: lora\)"
    )
    with pytest.raises(PluginError, match=message):
        PeftModel.from_pretrained(model, tmp_path, host=lora_host())
    before.assert_unchanged(model)
