"""The base's own weights in an adapter's file, as PEFT's save_embedding_layers writes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT_CLASSIFIER, GPT2, LLAMA, Snapshot, logits, shake, small
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import AdapterWarning, CheckpointError, PeftError
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prompt import PromptTuningConfig

WEIGHTS = "adapter_model.safetensors"
GPT2_TIED, LLAMA_TIED = (replace(c, tie_word_embeddings=True) for c in (GPT2, LLAMA))
BASES = {
    "llama": (LLAMA, "model.embed_tokens", ["q_proj"]),
    "llama, tied": (LLAMA_TIED, "model.embed_tokens", ["q_proj"]),
    "gpt2, tied": (GPT2_TIED, "transformer.wte", ["c_attn"]),
    "bert": (BERT_CLASSIFIER, "bert.embeddings.word_embeddings", ["query"]),
}
every_base = pytest.mark.parametrize(("config", "table", "targets"), BASES.values(), ids=BASES)


def saved(folder: Path, config: TransformerConfig, recipe: PeftConfig) -> PeftModel:
    peft = get_peft_model(small(config), recipe, host=Host.installed())
    shake(peft)
    peft.save_pretrained(folder)
    (folder / "recipe.json").unlink()  # as from PEFT
    return peft


def add(folder: Path, **tensors: AnyArray) -> None:
    """Write more tensors into a folder, by their paths in the base."""
    named = {f"base_model.model.{path}": array for path, array in tensors.items()}
    save_file({**load_file(folder / WEIGHTS), **named}, folder / WEIGHTS)


def load(folder: Path, model: Transformer) -> PeftModel:
    return PeftModel.from_pretrained(model, folder)


def other(model: Transformer, seed: int = 5) -> AnyArray:
    shape = model.config.vocab_size, model.config.hidden_size
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def with_table(config: TransformerConfig, table: AnyArray) -> Transformer:
    model = small(config)
    parameters = dict(model.named_parameters())
    parameters["embed_tokens.weight"].data = table
    return model


@every_base
def test_a_table_that_equals_the_bases_is_passed_over(
    config: TransformerConfig, table: str, targets: list[str], tmp_path: Path
) -> None:
    peft = saved(tmp_path, config, LoraConfig(r=2, target_modules=targets))
    base = small(config)
    add(tmp_path, **{f"{table}.weight": dict(base.named_parameters())["embed_tokens.weight"].data})
    loaded = load(tmp_path, base)
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    loaded.save_pretrained(tmp_path / "again")
    assert f"base_model.model.{table}.weight" not in load_file(tmp_path / "again" / WEIGHTS)


@every_base
def test_a_table_with_other_values_is_used_and_the_base_kept(
    config: TransformerConfig, table: str, targets: list[str], tmp_path: Path
) -> None:
    saved(tmp_path, config, LoraConfig(r=2, target_modules=targets))
    base = small(config)
    before, without, array = Snapshot.of(base), logits(base), other(base)
    wanted = logits(load(tmp_path, with_table(config, array)))
    add(tmp_path, **{f"{table}.weight": array})
    with pytest.warns(AdapterWarning, match=rf"{table}: the adapter's file has the base's own wei"):
        loaded = load(tmp_path, base)
    np.testing.assert_array_equal(logits(loaded), wanted)
    with loaded.disable_adapter():
        np.testing.assert_array_equal(logits(loaded), without)
    loaded.save_pretrained(tmp_path / "again")
    assert f"base_model.model.{table}.weight" in load_file(tmp_path / "again" / WEIGHTS)
    with pytest.warns(AdapterWarning, match="with other values"):
        np.testing.assert_array_equal(logits(load(tmp_path / "again", small(config))), wanted)
    before.assert_unchanged(loaded.unload())


@every_base
def test_a_table_with_other_values_is_merged(
    config: TransformerConfig, table: str, targets: list[str], tmp_path: Path
) -> None:
    saved(tmp_path, config, LoraConfig(r=2, target_modules=targets))
    base = small(config)
    add(tmp_path, **{f"{table}.weight": other(base)})
    with pytest.warns(AdapterWarning):
        loaded = load(tmp_path, base)
    wanted = logits(loaded)
    merged = loaded.merge_and_unload()
    assert merged.config.tie_word_embeddings == config.tie_word_embeddings
    save_model(merged, tmp_path / "merged")
    np.testing.assert_allclose(logits(load_model(tmp_path / "merged")), wanted, atol=1e-5)


def test_both_ends_of_a_tie_with_one_value_stay_tied_and_with_two_are_parted(
    tmp_path: Path,
) -> None:
    saved(tmp_path, LLAMA_TIED, LoraConfig(r=2, target_modules=["q_proj"]))
    one, two = other(small(LLAMA_TIED)), other(small(LLAMA_TIED), seed=6)
    for head, tied in ((one, True), (two, False)):
        add(tmp_path, **{"model.embed_tokens.weight": one, "lm_head.weight": head})
        with pytest.warns(AdapterWarning):
            loaded = load(tmp_path, small(LLAMA_TIED))
        wanted = logits(loaded)
        merged = loaded.merge_and_unload()
        assert merged.config.tie_word_embeddings is tied
        parameters = dict(merged.named_parameters())
        assert ("lm_head.weight" in parameters) is not tied
        np.testing.assert_allclose(logits(merged), wanted, atol=1e-5)


@pytest.mark.parametrize("wrapper", ["base_layer", "token_adapter.base_layer"])
def test_a_table_below_the_methods_own_module_is_used(wrapper: str, tmp_path: Path) -> None:
    method = (
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
        if wrapper == "base_layer"
        else LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 9])
    )
    saved(tmp_path, LLAMA, method)
    array = other(small())
    wanted = logits(load(tmp_path, with_table(LLAMA, array)))
    add(tmp_path, **{f"model.embed_tokens.{wrapper}.weight": array})
    with pytest.warns(AdapterWarning, match="with other values"):
        loaded = load(tmp_path, small())
    np.testing.assert_array_equal(logits(loaded), wanted)
    loaded.save_pretrained(tmp_path / "again")
    assert f"base_model.model.model.embed_tokens.{wrapper}.weight" in load_file(
        tmp_path / "again" / WEIGHTS
    )
    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(logits(merged), wanted, atol=1e-5)


def test_any_other_weight_of_the_base_is_used_too(tmp_path: Path) -> None:
    """PEFT's modules_to_save names modules by the ends of their names: `norm` names all norms."""
    peft = saved(tmp_path, LLAMA, IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    name = "model.layers.1.input_layernorm"
    add(tmp_path, **{f"{name}.weight": np.full(16, 2, np.float32)})
    with pytest.warns(AdapterWarning, match=name):
        loaded = load(tmp_path, small())
    assert np.abs(logits(loaded) - logits(peft)).max() > 1e-3


def test_a_methods_own_prefix_goes_before_the_bases_names_too(tmp_path: Path) -> None:
    peft = saved(tmp_path, LLAMA, PromptTuningConfig(num_virtual_tokens=2))
    array = other(small())
    save_file(
        {**load_file(tmp_path / WEIGHTS), "base_model.model.embed_tokens.weight": array},
        tmp_path / WEIGHTS,
    )
    with pytest.warns(AdapterWarning, match=r"model\.embed_tokens"):
        loaded = load(tmp_path, small())
    assert np.abs(logits(loaded) - logits(peft)).max() > 1e-3


def test_what_peft_wraps_twice_more_is_passed_over(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    peft = saved(tmp_path, LLAMA, config)
    again = [f"model.embed_tokens.{w}.weight" for w in ("modules_to_save", "original_module")]
    add(tmp_path, **dict.fromkeys(again, other(small())))
    np.testing.assert_array_equal(logits(load(tmp_path, small())), logits(peft))


def test_another_vocabulary_is_named_with_what_can_be_done(tmp_path: Path) -> None:
    recipe = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    saved(tmp_path, replace(LLAMA, vocab_size=53), recipe)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, small())
    first = str(caught.value).splitlines()[1]
    assert first.startswith(
        "  - the adapter's vocabulary has 53 tokens, 3 more than the model's 50"
    )
    assert "resize_token_embeddings(53)" in first
    rows = np.zeros((48, 16), np.float32)
    saved(tmp_path, LLAMA, LoraConfig(r=2, target_modules=["q_proj"]))
    add(tmp_path, **{"lm_head.weight": rows})
    with pytest.raises(CheckpointError, match="has 48 tokens, 2 fewer than the model's 50"):
        load(tmp_path, small())


@every_base
def test_inspect_says_the_same_with_the_model_and_without(
    config: TransformerConfig, table: str, targets: list[str], tmp_path: Path
) -> None:
    saved(tmp_path, config, LoraConfig(r=2, target_modules=targets))
    add(tmp_path, **{f"{table}.weight": other(small(config))})
    for base in (None, config):
        report = inspect_path(tmp_path, base=base)
        assert report.sound
        (note,) = report.notes
        assert note.startswith(f"{table}: the adapter's file has the base's own weight, which is u")


def test_an_adapter_with_weights_of_the_base_is_not_combined(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, LoraConfig(r=2, target_modules=["q_proj"]))
    add(tmp_path, **{"lm_head.weight": other(small())})
    with pytest.warns(AdapterWarning):
        loaded = load(tmp_path, small())
    with pytest.raises(PeftError, match="'default' has the base's own weights of lm_head"):
        loaded.add_weighted_adapter(["default"], [1.0], "sum")
