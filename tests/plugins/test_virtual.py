"""The common behaviour of prefix tuning, prompt tuning and P-tuning."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import (
    BERT,
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    IDS,
    LLAMA,
    Snapshot,
    logits,
    shake,
    small,
)
from tinygrad_peft.errors import ConfigError, PeftError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Linear, Module, TransformerConfig
from tinygrad_peft.nn.optim import AdamW
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    PeftModel,
    VirtualConfig,
    apply_recipe,
    count_recipe,
    get_peft_model,
)
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig

CONFIGS: dict[str, VirtualConfig] = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
    "prefix of zeros": PrefixTuningConfig(num_virtual_tokens=3, init_weights="zero"),
    "projected prefix": PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5
    ),
    "prompt": PromptTuningConfig(num_virtual_tokens=3),
    "sampled prompt": PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB"),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5),
}
USUAL_WIDTHS: dict[str, VirtualConfig] = {
    "projected prefix": PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=2),
}
PREFIX, PROMPT, P_TUNING = CONFIGS["prefix"], CONFIGS["prompt"], CONFIGS["p-tuning"]
LORA = LoraConfig(r=2)
STACKS: dict[str, list[PeftConfig]] = {
    "two prefixes": [PREFIX, CONFIGS["projected prefix"]],
    "two prompts": [PROMPT, P_TUNING],
    "prompt and prefix": [PROMPT, PREFIX],
    "prefix and prompt": [PREFIX, PROMPT],
    "LoRA and all": [LORA, PREFIX, P_TUNING, PROMPT, CONFIGS["projected prefix"]],
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> VirtualConfig:
    return CONFIGS[request.param]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TransformerConfig:
    return FAMILIES[request.param]


def adapted(
    family: TransformerConfig,
    recipe: PeftConfig | Sequence[PeftConfig],
    dtype: type[np.floating] = np.float32,
) -> PeftModel:
    """Return a small model with a recipe and moved weights."""
    peft = get_peft_model(small(family, dtype), recipe)
    shake(peft)
    return peft


def labels(family: TransformerConfig) -> np.ndarray:
    return np.array([2, 0]) if family.head == "classification" else IDS


def test_each_method_names_the_seam_that_it_stands_in(config: VirtualConfig) -> None:
    (rewrite,) = adapted(LLAMA, config).record.rewrites
    assert rewrite.seam.name == config.slot


# ---------- the numbers ----------


def test_gradients_match_differences_of_the_loss(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    peft = adapted(family, config, np.float64)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def loss(*_: Tensor) -> Tensor:
        return peft.loss(IDS, labels(family), mask)

    assert check_gradients(loss, peft.trainable_parameters(), step=1e-6) < 1e-6


@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_a_stack_match_differences_of_the_loss(
    family: TransformerConfig, name: str
) -> None:
    peft = adapted(family, STACKS[name], np.float64)
    parameters = peft.trainable_parameters()
    error = check_gradients(lambda *_: peft.loss(IDS, labels(family)), parameters, step=1e-6)
    assert error < 1e-6


def test_it_does_not_start_as_the_base(family: TransformerConfig, config: VirtualConfig) -> None:
    with no_grad():
        after = get_peft_model(small(family), config)(IDS).data
        before = small(family)(IDS).data
    tokens = before.shape[1] if family.head == "lm" else None
    last = after if tokens is None else after[:, -tokens:]
    assert np.abs(last - before).max() > 1e-4


def test_training_lowers_the_loss_and_leaves_the_base_alone(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    model = small(family)
    before = Snapshot.of(model)
    peft = get_peft_model(model, config)
    optimizer = AdamW(peft.trainable_parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = peft.loss(IDS, labels(family))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), logits(small(family)))
    before.assert_unchanged(peft.unload())


def test_equal_seeds_give_equal_weights_with_any_later_steps(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    def start(seed: int, *later: PeftConfig) -> list[np.ndarray]:
        peft = get_peft_model(small(family), [config, *later], seed=seed)
        return [p.data for p in peft.record.named_parameters(0).values()]

    first = start(1)
    for ours, theirs in zip(first, start(1, LORA, PROMPT, PREFIX), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if config is not CONFIGS["prefix of zeros"]:
        assert any(np.abs(a - b).max() > 0 for a, b in zip(first, start(2), strict=True))


def test_new_weights_have_the_models_dtype(config: VirtualConfig) -> None:
    for dtype in (np.float32, np.float64):
        peft = get_peft_model(small(LLAMA, dtype), config)
        assert {p.dtype for p in peft.parameters()} == {np.dtype(dtype)}
        assert peft(IDS).dtype == dtype


# ---------- where it stands ----------


@pytest.mark.parametrize(
    ("prompts", "order"),
    [
        ([PROMPT], [0]),
        ([PROMPT, CONFIGS["sampled prompt"]], [1, 0]),
        ([CONFIGS["sampled prompt"], LORA, PROMPT], [2, 0]),
    ],
)
def test_the_first_prompt_of_a_recipe_is_nearest_to_the_text(
    prompts: list[PeftConfig], order: list[int]
) -> None:
    peft = adapted(LLAMA, prompts)
    found = peft.base_model.prompt()
    assert found is not None
    states = [p.data for step in order for p in peft.record.named_parameters(step).values()]
    np.testing.assert_array_equal(found.states.data, np.concatenate(states))


def test_the_first_prefix_of_a_recipe_is_nearest_to_the_text() -> None:
    peft = adapted(LLAMA, [PREFIX, replace(PREFIX, num_virtual_tokens=2)])
    found = peft.base_model.prefix()
    assert found is not None
    assert found.length == 5
    inner, outer = (next(iter(peft.record.named_parameters(step).values())).data for step in (0, 1))
    keys = np.concatenate([outer, inner]).reshape(5, 3, 2, 2, 4)  # (P, L, 2, K, D)
    for layer, (k, v) in enumerate(found.layers):
        np.testing.assert_array_equal(k.data, keys[:, layer, 0])
        np.testing.assert_array_equal(v.data, keys[:, layer, 1])


@pytest.mark.parametrize("other", [LORA, PREFIX, P_TUNING])
def test_steps_at_different_places_commute(family: TransformerConfig, other: PeftConfig) -> None:
    outputs = []
    for steps in ([PROMPT, other], [other, PROMPT]):
        peft = get_peft_model(small(family), steps)
        for step, config in enumerate(steps):
            rng = np.random.default_rng(len(config.peft_type))
            for parameter in peft.record.named_parameters(step).values():
                parameter.data = rng.normal(0, 0.2, parameter.shape).astype(np.float32)
        outputs.append(logits(peft))
    if other is P_TUNING:  # also a prompt: the order of the recipe matters
        assert np.abs(outputs[0] - outputs[1]).max() > 1e-5
    else:
        np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing_for_a_classifier(pooling: str, config: VirtualConfig) -> None:
    model = small(BERT)
    model.with_classifier(3, pooling=pooling)
    peft = get_peft_model(model, config)
    shake(peft)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with no_grad():
        both = peft(IDS, mask).data
        alone = peft(IDS[1:, :3]).data
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-6)


def test_a_bare_encoder_gives_hidden_states_of_prompt_and_text(config: VirtualConfig) -> None:
    virtual = 0 if isinstance(config, PrefixTuningConfig) else 3
    assert adapted(BERT, config)(IDS).shape == (2, virtual + 5, 16)


@pytest.mark.parametrize("family", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_generation_is_the_same_with_and_without_a_cache(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    peft = adapted(family, config)
    ids = IDS
    with no_grad():
        for _ in range(6):
            ids = np.concatenate([ids, peft(ids).data[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(peft.generate(IDS, max_new_tokens=6), ids)


@pytest.mark.parametrize("family", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_texts_padded_on_the_left_continue_as_they_do_alone(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    peft = adapted(family, config)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    both = peft.generate(IDS, max_new_tokens=5, attention_mask=mask)
    np.testing.assert_array_equal(both[1, 2:], peft.generate(IDS[1:, 2:], max_new_tokens=5)[0])


def test_a_text_of_one_token_and_a_batch_of_one_work(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    peft = adapted(family, config)
    with no_grad():
        both, one = peft(IDS[:, :1]).data, peft(IDS[:1, :1]).data
    np.testing.assert_allclose(both[:1], one, rtol=1e-5, atol=1e-6)


# ---------- counting ----------


@pytest.mark.parametrize("config", [*CONFIGS.values(), *USUAL_WIDTHS.values()])
def test_the_closed_form_matches_the_count(
    family: TransformerConfig, config: VirtualConfig
) -> None:
    real = get_peft_model(small(family), config).get_nb_trainable_parameters()
    assert count_recipe(family, config, Host.installed()) == real


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_the_sum_of_its_steps(family: TransformerConfig, name: str) -> None:
    real = get_peft_model(small(family), STACKS[name]).get_nb_trainable_parameters()
    assert count_recipe(family, STACKS[name], Host.installed()) == real


def test_a_head_that_is_trained_beside_it_is_counted(config: VirtualConfig) -> None:
    saving = replace(config, modules_to_save=["classifier"])
    real = get_peft_model(small(BERT_CLASSIFIER), saving).get_nb_trainable_parameters()
    assert count_recipe(BERT_CLASSIFIER, saving, Host.installed()) == real


# ---------- on disk ----------


def test_a_saved_adapter_is_loaded(
    family: TransformerConfig, config: VirtualConfig, tmp_path: Path
) -> None:
    peft = adapted(family, config)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(family), tmp_path)
    assert again.recipe == (config,)
    np.testing.assert_array_equal(logits(again), logits(peft))


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_saved_and_loaded_in_its_order(
    family: TransformerConfig, name: str, tmp_path: Path
) -> None:
    peft = adapted(family, STACKS[name])
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(family), tmp_path)
    assert again.recipe == tuple(STACKS[name])
    np.testing.assert_array_equal(logits(again), logits(peft))


@pytest.mark.parametrize("name", USUAL_WIDTHS)
@pytest.mark.parametrize("whole", [True, False])
def test_it_is_stored_flattened_or_whole_for_further_training(
    family: TransformerConfig, name: str, tmp_path: Path, *, whole: bool
) -> None:
    peft = adapted(family, USUAL_WIDTHS[name])
    peft.save_pretrained(tmp_path, flatten=not whole)
    again = PeftModel.from_pretrained(small(family), tmp_path, is_trainable=True)
    np.testing.assert_array_equal(logits(again), logits(peft))
    trained = again.record.named_parameters(0)
    if not whole:
        assert [path.rpartition(".")[2] for path in trained] == ["prompt_embeddings"]
    else:
        assert trained.keys() == peft.record.named_parameters(0).keys()
        step(again)
        step(peft)
        np.testing.assert_array_equal(logits(again), logits(peft))


def step(peft: PeftModel) -> None:
    peft.loss(IDS, labels(peft.config)).backward()
    AdamW(peft.trainable_parameters(), lr=0.01).step()


def test_rows_may_have_different_prompts_and_prefixes(family: TransformerConfig) -> None:
    peft = adapted(family, [PREFIX, P_TUNING])
    recipes = {"short": [PROMPT], "long": [CONFIGS["projected prefix"], PROMPT, PROMPT]}
    for name, recipe in recipes.items():
        peft.add_adapter(name, recipe, seed=1)
    ids = np.concatenate([IDS, IDS[:1]])
    names = ["long", "default", "short"]
    with no_grad():
        together = peft(ids, adapter_names=names).data
        for row, name in enumerate(names):
            peft.set_adapter(name)
            alone = peft(ids[row : row + 1]).data[0]
            found = together[row, -len(alone) :] if alone.ndim == 2 else together[row]
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


# ---------- what is refused ----------


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
def test_a_length_of_zero_is_refused(kind: type[VirtualConfig]) -> None:
    for count in (0, -3):
        with pytest.raises(
            ConfigError, match=f"num_virtual_tokens: expected at least 1, got {count}"
        ):
            kind(num_virtual_tokens=count)


@pytest.mark.parametrize(
    "lengths", [[PREFIX, 24], [PROMPT, 30], [PROMPT, 4, PREFIX, 20], [PREFIX, 22, P_TUNING, 2]]
)
def test_virtual_tokens_without_room_for_a_text_are_refused_before_anything_changes(
    family: TransformerConfig, lengths: list[object]
) -> None:
    recipe = []
    for kind, count in zip(lengths[::2], lengths[1::2], strict=True):
        assert isinstance(kind, VirtualConfig)
        assert isinstance(count, int)
        recipe.append(replace(kind, num_virtual_tokens=count))
    model = small(family)
    before = Snapshot.of(model)
    total = sum(step.num_virtual_tokens for step in recipe)
    with pytest.raises(PeftError) as caught:
        get_peft_model(model, recipe)
    said = f"step {len(recipe) - 1}: expected fewer than"
    assert str(caught.value).count("to leave room for the text") == 1
    assert said in str(caught.value)
    before.assert_unchanged(model)
    with pytest.raises(PeftError, match="to leave room for the text"):
        count_recipe(family, recipe, Host.installed())
    last = replace(recipe[-1], num_virtual_tokens=recipe[-1].num_virtual_tokens - total + 23)
    get_peft_model(model, [*recipe[:-1], last])(IDS[:, :1])


def test_an_adapter_of_another_model_is_refused_with_every_mismatch(
    config: VirtualConfig,
) -> None:
    notes = {
        "token_dim": 768,
        "num_attention_heads": 12,
        "num_layers": 12,
        "num_transformer_submodules": 2,
    }
    model = small(LLAMA)
    before = Snapshot.of(model)
    with pytest.raises(PeftError) as caught:
        get_peft_model(model, [LORA, replace(config, **notes)])  # type: ignore[arg-type]
    prefix = isinstance(config, PrefixTuningConfig)
    own = {"token_dim": 8 if prefix else 16, "num_attention_heads": 2 if prefix else 4}
    for name, size in {**own, "num_layers": 3, "num_transformer_submodules": 1}.items():
        said = f"step 1: {name}: expected the model's {size}, got {notes[name]}"
        assert said in str(caught.value)
    before.assert_unchanged(model)
    fitting = dict(own, num_layers=3, num_transformer_submodules=1)
    get_peft_model(model, replace(config, **fitting))  # type: ignore[arg-type]


def test_merging_is_refused(config: VirtualConfig) -> None:
    peft = adapted(LLAMA, [LORA, config])
    before = logits(peft)
    with pytest.raises(PeftError, match=r"model\.(prompt|prefix): p\w+ cannot be merged: v"):
        peft.merge_adapter()
    np.testing.assert_array_equal(logits(peft), before)


def test_a_model_without_a_place_for_it_is_refused(config: VirtualConfig) -> None:
    class Other(Module):
        def __init__(self) -> None:
            self.prompt = Linear(2, 2)
            self.prefix = Linear(2, 2)

    with pytest.raises(PeftError, match="adapted nothing: the model has no seam for it"):
        apply_recipe(Other(), config, Host.installed())
