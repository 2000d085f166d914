from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.peft.small import (
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    IDS,
    LLAMA,
    ShiftConfig,
    Snapshot,
    logits,
    lora_host,
    plugin,
    shake,
    shift,
    small,
)
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Dropout, Linear, Transformer
from tinygrad_peft.peft import Host, PeftModel, get_peft_model
from tinygrad_peft_lora import LoraConfig, LoraLinear

RECIPES = {
    "one": [LoraConfig(r=2)],
    "all-linear": [LoraConfig(r=2, target_modules="all-linear")],
    "stacked": [LoraConfig(r=2), LoraConfig(r=3, target_modules="all-linear")],
    "bias of targets": [LoraConfig(r=2, bias="lora_only")],
    "all biases": [LoraConfig(r=2, bias="all")],
}


def adapted(
    family: str = "llama", recipe: str = "one", dtype: type[np.floating] = np.float32
) -> PeftModel:
    """A model with a recipe applied, and its weights moved as if it had been trained."""
    peft = get_peft_model(small(FAMILIES[family], dtype), RECIPES[recipe], host=lora_host())
    shake(peft)
    return peft


def shift_host() -> Host:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    return host


def modes(peft: PeftModel) -> set[bool]:
    return {module.training for _, module in peft.named_modules()}


# ---------- training ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_changes_what_was_added_and_nothing_else(family: str, recipe: str) -> None:
    model = small(FAMILIES[family])
    before, at_first = Snapshot.of(model), logits(model)
    peft = get_peft_model(model, RECIPES[recipe], host=lora_host())
    peft.train()
    for _ in range(2):
        labels = np.array([0, 2]) if family == "bert" else IDS
        peft.loss(IDS, labels).backward()
        for parameter in peft.trainable_parameters():
            assert parameter.grad is not None
            parameter.data -= 0.5 * parameter.grad
            parameter.grad = None
    peft.eval()
    assert not np.array_equal(logits(peft), at_first)
    peft.unload()
    before.assert_unchanged(model)
    np.testing.assert_array_equal(logits(model), at_first)


def test_frozen_weights_get_no_gradient() -> None:
    peft = adapted()
    peft.loss(IDS, IDS).backward()
    trained = {id(p) for p in peft.trainable_parameters()}
    for parameter in peft.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


# ---------- merging ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_merged_and_unmerged_models_agree(
    family: str, recipe: str, dtype: type[np.floating], bound: float
) -> None:
    peft = adapted(family, recipe, dtype)
    unmerged = logits(peft)
    peft.merge_adapter()
    assert not any(isinstance(module, LoraLinear) for _, module in peft.named_modules())
    np.testing.assert_allclose(logits(peft), unmerged, rtol=bound, atol=bound)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), unmerged)


@pytest.mark.parametrize("recipe", RECIPES)
def test_merging_and_unmerging_leave_no_trace(recipe: str) -> None:
    peft = adapted("bert", recipe)
    before = Snapshot.of(peft)
    for _ in range(2):
        peft.merge_adapter()
        peft.unmerge_adapter()
    before.assert_unchanged(peft)


def test_a_merged_model_has_nothing_to_train() -> None:
    peft = adapted("bert", "all biases")
    peft.merge_adapter()
    assert peft.trainable_parameters() == []


def test_merged_weights_are_not_those_of_the_adapter() -> None:
    peft = adapted("bert", "all biases")
    peft.merge_adapter()
    merged = logits(peft)
    for _, parameter in sorted(peft.record.named_parameters(0).items()):
        parameter.data += 1.0
    np.testing.assert_array_equal(logits(peft), merged)


def test_merging_copies_no_weight_that_it_does_not_change() -> None:
    peft = adapted("bert", "all biases")
    key = peft.base_model.blocks[0].attn.get_child("k_proj")  # type: ignore[attr-defined]
    peft.merge_adapter()
    merged = peft.base_model.blocks[0].attn.get_child("k_proj")  # type: ignore[attr-defined]
    assert merged is not key
    assert merged.weight is key.weight
    assert merged.bias is not key.bias


def test_a_merged_models_weights_have_the_names_of_the_base() -> None:
    peft = adapted()
    peft.merge_adapter()
    plain = {name for name, _ in small(LLAMA).named_parameters()}
    assert {name for name, _ in peft.named_parameters()} == {f"base_model.{name}" for name in plain}


def test_merging_twice_and_unmerging_what_is_not_merged_are_errors() -> None:
    peft = adapted()
    with pytest.raises(PeftError, match="the adapter is not merged"):
        peft.unmerge_adapter()
    peft.merge_adapter()
    merged = logits(peft)
    with pytest.raises(PeftError, match="the adapter is already merged"):
        peft.merge_adapter()
    np.testing.assert_array_equal(logits(peft), merged)


def test_unmergeable_methods_are_listed_and_nothing_is_merged() -> None:
    recipe = [LoraConfig(r=2), ShiftConfig(target_modules=["o_proj", "q_proj"])]
    peft = get_peft_model(small(), recipe, host=shift_host())
    shake(peft)
    before = Snapshot.of(peft)
    for merge in (peft.merge_adapter, peft.merge_and_unload):
        with pytest.raises(PeftError, match="cannot be merged, and nothing was") as caught:
            merge()
        for layer in range(3):
            for name in ("q_proj", "o_proj"):
                line = f"model.layers.{layer}.self_attn.{name}: shift cannot be merged"
                assert line in str(caught.value)
        assert "v_proj" not in str(caught.value)
        before.assert_unchanged(peft)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_base_that_is_not_finite_is_not_merged(broken: float) -> None:
    model = small()
    peft = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    model.state_dict()["blocks.1.attn.v_proj.base_layer.weight"][0, 0] = broken
    before = Snapshot.of(peft)
    with pytest.raises(PeftError, match="v_proj: weight of the base holds NaN or infinity"):
        peft.merge_adapter()
    before.assert_unchanged(peft)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_not_merged(broken: float) -> None:
    model = small()
    base = logits(model)
    peft = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    shake(peft)
    names = peft.record.named_parameters(0)
    names["model.layers.1.self_attn.v_proj.lora_B.weight"].data[0, 0] = broken
    before = Snapshot.of(peft)
    with pytest.raises(PeftError, match="v_proj: weight would hold NaN or infinity") as caught:
        peft.merge_and_unload()
    assert "layers.0" not in str(caught.value)
    before.assert_unchanged(peft)
    np.testing.assert_array_equal(logits(peft.unload()), base)


def test_a_merged_and_unloaded_model_is_plain() -> None:
    peft = adapted("gpt2", "stacked")
    expected = logits(peft)
    plain = peft.merge_and_unload()
    assert plain is peft.base_model
    np.testing.assert_allclose(logits(plain), expected, rtol=1e-5, atol=1e-5)
    fresh = small(GPT2)
    kinds = [(path, type(module)) for path, module in plain.named_modules()]
    assert kinds == [(path, type(module)) for path, module in fresh.named_modules()]
    assert list(plain.state_dict()) == list(fresh.state_dict())


def test_a_model_that_was_merged_before_is_unloaded_as_merged() -> None:
    peft = adapted()
    peft.merge_adapter()
    merged = logits(peft)
    np.testing.assert_array_equal(logits(peft.merge_and_unload()), merged)


def test_a_merged_model_takes_another_adapter() -> None:
    plain = adapted().merge_and_unload()
    before = logits(plain)
    again = get_peft_model(plain, LoraConfig(r=2), host=lora_host())
    np.testing.assert_array_equal(logits(again), before)


# ---------- disabling and unloading ----------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_disabled_adapter_is_the_base_bit_for_bit(family: str, merged: bool) -> None:
    base = logits(small(FAMILIES[family]))
    peft = adapted(family, "stacked")
    if merged:
        peft.merge_adapter()
    before, with_adapter = Snapshot.of(peft), logits(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), base)
        with peft.disable_adapter():
            np.testing.assert_array_equal(logits(peft), base)
        np.testing.assert_array_equal(logits(peft), base)
    np.testing.assert_array_equal(logits(peft), with_adapter)
    before.assert_unchanged(peft)


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt()])
def test_an_exception_leaves_the_block_with_the_adapter_enabled(error: BaseException) -> None:
    peft = adapted()
    before = Snapshot.of(peft)
    with pytest.raises(type(error)), peft.disable_adapter(), peft.disable_adapter():
        raise error
    before.assert_unchanged(peft)


def test_merging_within_the_block_shows_after_it() -> None:
    base, peft = logits(small()), adapted()
    expected = adapted()
    expected.merge_adapter()
    with peft.disable_adapter():
        peft.merge_adapter()
        np.testing.assert_array_equal(logits(peft), base)
    np.testing.assert_array_equal(logits(peft), logits(expected))


def test_unloading_within_the_block_is_final() -> None:
    model = small()
    before = Snapshot.of(model)
    peft = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    shake(peft)
    with peft.disable_adapter():
        peft.unload()
    before.assert_unchanged(model)


def test_merging_and_unloading_within_the_block_is_final() -> None:
    peft = adapted()
    expected = logits(peft)
    with peft.disable_adapter():
        plain = peft.merge_and_unload()
        np.testing.assert_allclose(logits(plain), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(plain), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("merged", [False, True])
def test_an_unloaded_model_is_what_it_was(family: str, merged: bool) -> None:
    model = small(FAMILIES[family])
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad = i % 2 == 0
    before = Snapshot.of(model)
    peft = get_peft_model(model, RECIPES["stacked"], host=lora_host())
    shake(peft)
    if merged:
        peft.merge_adapter()
    assert peft.unload() is model
    before.assert_unchanged(model)


def test_an_unloaded_adapter_still_answers_for_the_base_and_does_nothing_else() -> None:
    peft = adapted()
    peft.unload()
    np.testing.assert_array_equal(logits(peft), logits(small()))
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), logits(small()))
    for action in (
        peft.merge_adapter,
        peft.merge_and_unload,
        peft.unload,
        lambda: peft.save_pretrained("nowhere"),
    ):
        with pytest.raises(PeftError, match="there is no adapter: it was unloaded"):
            action()


def test_an_unloaded_adapter_takes_no_further_ones_and_leaves_later_ones_alone() -> None:
    first = adapted()
    model = first.unload()
    with pytest.raises(PeftError, match="was unloaded: adapt the model again by get_peft_model"):
        first.add_adapter("more", LoraConfig(r=2))
    later = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    shake(later)
    before = Snapshot.of(model)
    with first.disable_adapter():
        before.assert_unchanged(model)
    before.assert_unchanged(model)


def test_a_model_whose_last_adapter_was_deleted_is_unloaded() -> None:
    model = small()
    before = Snapshot.of(model)
    peft = get_peft_model(model, LoraConfig(r=2), host=lora_host())
    peft.delete_adapter("default")
    assert peft.unload() is model
    before.assert_unchanged(model)
    get_peft_model(model, LoraConfig(r=2), host=lora_host())


# ---------- modes ----------


def dropping(peft: PeftModel) -> int:
    """The number of active dropouts."""
    return sum(m.training for _, m in peft.named_modules() if isinstance(m, Dropout))


@pytest.mark.parametrize("training", [True, False])
def test_modules_that_stood_aside_learn_which_mode_the_model_is_in(training: bool) -> None:
    peft = get_peft_model(small(), LoraConfig(lora_dropout=0.5), host=lora_host())
    peft.train(mode=not training)
    with peft.disable_adapter():
        peft.train(mode=training)
    assert modes(peft) == {training}
    peft.train(mode=not training)
    peft.merge_adapter()
    peft.train(mode=training)
    with peft.disable_adapter():
        assert modes(peft) == {training}
    peft.unmerge_adapter()
    assert modes(peft) == {training}


def test_a_model_unloaded_in_another_mode_is_in_that_mode() -> None:
    model = small()
    peft = get_peft_model(model, LoraConfig(), host=lora_host())
    peft.train()
    peft.unload()
    assert {module.training for _, module in model.named_modules()} == {True}


# ---------- counting ----------


def test_trainable_and_all_parameters_are_counted() -> None:
    model = small(LLAMA)
    base = sum(p.size for p in model.parameters())
    peft = get_peft_model(model, LoraConfig(r=4), host=lora_host())
    lora = 3 * (4 * (16 + 16) + 4 * (16 + 8))
    assert peft.get_nb_trainable_parameters() == (lora, base + lora)


def test_a_tied_weight_counts_once() -> None:
    model = small(GPT2)
    assert model.config.tie_word_embeddings
    base = sum(p.size for _, p in model.named_parameters())
    assert sum(p.size for _, m in model.named_modules() for _, p in m.own_parameters()) > base
    peft = get_peft_model(model, LoraConfig(r=1), host=lora_host())
    assert peft.get_nb_trainable_parameters() == (2 * (16 + 48), base + 2 * (16 + 48))


def test_trained_biases_add_nothing_to_all_and_saved_modules_do_as_in_peft() -> None:
    base = sum(p.size for p in small(BERT_CLASSIFIER).parameters())
    lora = 2 * 2 * (16 + 16)
    config = LoraConfig(r=1, bias="lora_only")
    peft = get_peft_model(small(BERT_CLASSIFIER), config, host=lora_host())
    assert peft.get_nb_trainable_parameters() == (lora + 2 * 2 * 16, base + lora)
    config = LoraConfig(r=1, modules_to_save=["classifier"])
    peft = get_peft_model(small(BERT_CLASSIFIER), config, host=lora_host())
    head = 3 * 16 + 3
    assert peft.get_nb_trainable_parameters() == (lora + head, base + lora + head)


def test_the_counts_are_printed_as_peft_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    peft = get_peft_model(small(LLAMA), LoraConfig(r=4), host=lora_host())
    trainable, total = peft.get_nb_trainable_parameters()
    peft.print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {100 * trainable / total:.4f}\n"
    )


# ---------- saved modules ----------


def test_a_saved_module_is_trained_as_a_copy_and_merged_as_it_is() -> None:
    model = small(BERT_CLASSIFIER)
    base = logits(model)
    original = model.classifier
    config = LoraConfig(r=2, modules_to_save=["classifier"])
    peft = get_peft_model(model, config, host=lora_host())
    shake(peft)
    assert isinstance(original, Linear)
    assert isinstance(model.classifier, Linear)
    assert model.classifier is not original
    changed = logits(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), base)
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), changed, rtol=1e-5, atol=1e-5)
    assert peft.unload().classifier is original
    np.testing.assert_array_equal(logits(model), base)


def test_lora_on_a_saved_module_of_an_earlier_step_is_merged_into_the_copy() -> None:
    recipe = [
        LoraConfig(r=2, modules_to_save=["classifier"]),
        LoraConfig(r=2, target_modules=["classifier"]),
    ]
    peft = get_peft_model(small(BERT_CLASSIFIER), recipe, host=lora_host())
    shake(peft)
    expected = logits(peft)
    np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, rtol=1e-5, atol=1e-5)


# ---------- being a transformer ----------


def test_a_peft_model_is_called_as_the_transformer_is() -> None:
    peft = adapted("bert", "one")
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    types = np.array([[0, 0, 1, 1, 1]] * 2)
    own = peft(IDS, mask, token_type_ids=types)
    np.testing.assert_array_equal(own.data, peft.base_model(IDS, mask, token_type_ids=types).data)
    assert not np.array_equal(own.data, peft(IDS).data)
    assert peft.config is peft.base_model.config
    assert peft.recipe == tuple(RECIPES["one"])


# ---------- one adapter at a time ----------


def test_a_model_that_is_adapted_is_refused_until_its_adapter_is_off() -> None:
    peft = adapted()
    before = logits(peft)
    with pytest.raises(PeftError, match="already adapted: unload or merge that adapter first"):
        get_peft_model(peft.base_model, LoraConfig(r=2), host=lora_host())
    np.testing.assert_array_equal(logits(peft), before)
    model = peft.unload()
    assert get_peft_model(model, LoraConfig(r=2), host=lora_host()).unload() is model
    merged = get_peft_model(model, LoraConfig(r=2), host=lora_host()).merge_and_unload()
    assert get_peft_model(merged, LoraConfig(r=2), host=lora_host()).trainable_parameters()


@pytest.mark.parametrize("recipe", RECIPES)
def test_counts_are_of_the_adapter_also_while_it_is_merged_or_disabled(recipe: str) -> None:
    peft = adapted("gpt2", recipe)
    expected, output = peft.get_nb_trainable_parameters(), logits(peft)
    with peft.disable_adapter():
        base = logits(peft)
        assert peft.get_nb_trainable_parameters() == expected
        np.testing.assert_array_equal(logits(peft), base)
    peft.merge_adapter()
    merged = logits(peft)
    assert peft.get_nb_trainable_parameters() == expected
    np.testing.assert_array_equal(logits(peft), merged)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), output)


def test_a_model_with_an_adapter_is_not_taken_for_its_base(tmp_path: Path) -> None:
    peft = get_peft_model(small(), LoraConfig(r=2))
    peft.save_pretrained(tmp_path)
    adapted = cast("Transformer", peft)
    wanted = "expected a Transformer, got a PeftModel: add another adapter by its load_adapter"
    with pytest.raises(PeftError, match=wanted):
        PeftModel.from_pretrained(adapted, tmp_path)
    with pytest.raises(PeftError, match=wanted):
        get_peft_model(adapted, LoraConfig(r=2))
    with pytest.raises(PeftError, match="expected a Transformer, got str"):
        get_peft_model(cast("Transformer", "org/model"), LoraConfig(r=2))
