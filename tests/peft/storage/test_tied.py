"""Modules that share one weight, saved or adapted on one side or on both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peft.small import IDS, LLAMA, Snapshot, logits, shake, small
from tinygrad_peft.errors import AdapterWarning, TargetError
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.peft import Host, PeftModel, count_recipe, get_peft_model
from tinygrad_peft_lora import LoraConfig

WEIGHTS = "adapter_model.safetensors"
TIED = replace(LLAMA, tie_word_embeddings=True)
UNTIED = replace(LLAMA, tie_word_embeddings=False)
BOTH = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
ENSURED = replace(BOTH, modules_to_save=["embed_tokens"], ensure_weight_tying=True)


def adapted(config: LoraConfig) -> PeftModel:
    peft = get_peft_model(small(TIED), config)
    shake(peft)
    return peft


def of_an_untied_base(folder: Path, recipe: LoraConfig) -> Path:
    """An adapter as PEFT writes it, whose base has two ends with the same values."""
    base = small(UNTIED)
    parameters = dict(base.named_parameters())
    parameters["lm_head.weight"].data = parameters["embed_tokens.weight"].data.copy()
    peft = get_peft_model(base, recipe)
    shake(peft)
    peft.save_pretrained(folder)
    (folder / "recipe.json").unlink()
    np.save(folder / "logits.npy", logits(peft))
    return folder


def test_both_ends_that_are_saved_are_trained_apart(tmp_path: Path) -> None:
    base = small(TIED)
    before, without = Snapshot.of(base), logits(base)
    peft = get_peft_model(base, BOTH)
    np.testing.assert_array_equal(logits(peft), without)
    shake(peft)
    peft.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    one, other = (f"base_model.model.{n}.weight" for n in ("model.embed_tokens", "lm_head"))
    assert not np.array_equal(stored[one], stored[other])
    loaded = PeftModel.from_pretrained(small(TIED), tmp_path)
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    assert peft.get_nb_trainable_parameters() == count_recipe(TIED, BOTH, Host.installed())
    before.assert_unchanged(peft.unload())


def test_one_copy_is_trained_for_both_ends_where_the_tie_is_ensured(tmp_path: Path) -> None:
    peft = adapted(ENSURED)
    assert peft.get_nb_trainable_parameters() == count_recipe(TIED, ENSURED, Host.installed())
    twice = count_recipe(TIED, BOTH, Host.installed())[0]
    assert peft.get_nb_trainable_parameters()[0] == twice - 50 * 16
    peft.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    np.testing.assert_array_equal(
        stored["base_model.model.model.embed_tokens.weight"],
        stored["base_model.model.lm_head.weight"],
    )
    loaded = PeftModel.from_pretrained(small(TIED), tmp_path)
    assert loaded.recipe == (ENSURED,)
    np.testing.assert_array_equal(logits(loaded), logits(peft))


@pytest.mark.parametrize(("config", "tied"), [(BOTH, False), (ENSURED, True)])
def test_merging_writes_a_model_that_is_tied_or_not(
    config: LoraConfig, tied: bool, tmp_path: Path
) -> None:
    peft = adapted(config)
    wanted = logits(peft)
    merged = peft.merge_and_unload()
    assert merged.config.tie_word_embeddings is tied
    save_model(merged, tmp_path)
    again = load_model(tmp_path)
    assert again.config.tie_word_embeddings is tied
    np.testing.assert_allclose(logits(again), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    ],
)
def test_one_end_alone_is_refused_on_creation_and_opened_from_a_file(
    recipe: LoraConfig, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="adapting only one would untie them"):
        get_peft_model(small(TIED), recipe)
    folder = of_an_untied_base(tmp_path / "a", recipe)
    with pytest.warns(AdapterWarning, match="shares its weight with .*: they are parted, as in"):
        loaded = PeftModel.from_pretrained(small(TIED), folder)
    wanted = np.load(folder / "logits.npy")
    np.testing.assert_array_equal(logits(loaded), wanted)
    merged = loaded.merge_and_unload()
    assert not merged.config.tie_word_embeddings
    np.testing.assert_allclose(logits(merged), wanted, atol=1e-5)


def test_loras_of_both_ends_are_opened_where_only_one_is_named(tmp_path: Path) -> None:
    """PEFT's ensure_weight_tying adds the other end without writing it into target_modules."""
    recipe = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"])
    folder = of_an_untied_base(tmp_path / "a", recipe)
    settings = (folder / "adapter_config.json").read_text()
    written = settings.replace('"ensure_weight_tying": false', '"ensure_weight_tying": true')
    (folder / "adapter_config.json").write_text(written.replace('"lm_head",', ""))
    with pytest.warns(AdapterWarning, match="they are parted"):
        loaded = PeftModel.from_pretrained(small(TIED), folder)
    np.testing.assert_array_equal(logits(loaded), np.load(folder / "logits.npy"))


def test_rows_of_a_batch_go_through_ends_of_their_own() -> None:
    peft = adapted(BOTH)
    peft.add_adapter("other", ENSURED)
    both = peft(IDS, adapter_names=["default", "other"]).data
    np.testing.assert_allclose(both[0], logits(peft)[0], atol=1e-6)
    peft.set_adapter("other")
    np.testing.assert_allclose(both[1], logits(peft)[1], atol=1e-6)
