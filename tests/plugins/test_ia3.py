from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import Snapshot, lora_host, small
from tinygrad_peft.errors import PluginError
from tinygrad_peft.nn import Init, Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, count_recipe, get_peft_model
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig

LLAMA = TransformerConfig(
    model_type="llama",
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=12,
    max_position_embeddings=8,
    norm="rms_norm",
    positions="rotary",
    activation="silu",
    gated_mlp=True,
)
IDS = np.array([[1, 2, 3], [4, 5, 6]])
LORA, IA3 = LoraConfig(r=2, target_modules=["k_proj", "q_proj"]), IA3Config()
RECIPES: dict[str, list[PeftConfig]] = {
    "alone": [IA3],
    "over LoRA": [LORA, IA3],
    "under LoRA": [IA3, LORA],
    "twice": [IA3, IA3],
    "between": [LORA, IA3, LORA],
}


def model(dtype: type[np.floating] = np.float64) -> Transformer:
    made = Transformer(LLAMA, Init(0, dtype))
    made.eval()
    return made


def logits(model: Transformer | PeftModel) -> np.ndarray:
    with no_grad():
        return model(IDS).data


def trained(recipe: list[PeftConfig]) -> PeftModel:
    peft = get_peft_model(model(), recipe)
    rng = np.random.default_rng(1)
    for parameter in peft.trainable_parameters():
        parameter.data = parameter.data + rng.normal(0, 0.2, parameter.shape)
    return peft


def test_it_is_found_by_its_entry_point() -> None:
    assert Host.installed().methods()["ia3"] is IA3Config


@pytest.mark.parametrize("name", RECIPES)
def test_it_starts_as_the_base(name: str) -> None:
    np.testing.assert_array_equal(logits(get_peft_model(model(), RECIPES[name])), logits(model()))


def test_it_scales_what_a_layer_gives() -> None:
    peft = get_peft_model(model(), IA3Config(target_modules=["down_proj"]))
    parameters = peft.record.named_parameters(0)
    assert list(parameters) == [f"model.layers.{n}.mlp.down_proj.ia3_l" for n in (0, 1)]
    for parameter in parameters.values():
        parameter.data = np.zeros(8)
    silent = model()
    for block in silent.blocks:
        for _, weight in block.mlp.named_parameters():  # type: ignore[attr-defined]
            weight.data = np.zeros_like(weight.data)
    np.testing.assert_allclose(logits(peft), logits(silent), rtol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_it_merges_in_any_order_and_unmerges_exactly(name: str) -> None:
    peft = trained(RECIPES[name])
    expected = logits(peft)
    assert np.abs(expected - logits(model())).max() > 1e-3
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-12, atol=1e-12)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), expected)
    np.testing.assert_array_equal(logits(peft.unload()), logits(model()))


def test_the_order_of_the_recipe_matters() -> None:
    outputs = [logits(trained(RECIPES[name])) for name in ("over LoRA", "under LoRA")]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_counted(name: str) -> None:
    real = trained(RECIPES[name]).get_nb_trainable_parameters()
    assert count_recipe(LLAMA, RECIPES[name], Host.installed()) == real


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    peft = trained(RECIPES[name])
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model(), tmp_path)
    assert loaded.recipe == tuple(RECIPES[name])
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_a_recipe_whose_plugin_is_missing_says_what_to_install(tmp_path: Path) -> None:
    recipe = [LoraConfig(r=2), IA3Config()]
    get_peft_model(small(), recipe, host=Host.installed()).save_pretrained(tmp_path)
    model = small()
    before = Snapshot.of(model)
    message = (
        r"1-ia3.adapter_config\.json: no installed plugin provides the method 'ia3'; the "
        r"distribution 'tinygrad-peft-ia3' does: install it \(there are: lora\)"
    )
    with pytest.raises(PluginError, match=message):
        PeftModel.from_pretrained(model, tmp_path, host=lora_host())
    before.assert_unchanged(model)
