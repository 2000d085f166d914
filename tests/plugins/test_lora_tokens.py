from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peft.small import (
    BERT_CLASSIFIER,
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
from tinygrad_peft.errors import PeftError, TokenError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.nn import Embedding, Init, Linear, Parameter, TransformerConfig
from tinygrad_peft.peft import PeftModel, count_recipe, get_peft_model
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import LoraConfig, LoraLinear, TrainedLogits, TrainedTokens

TOKENS = [14, 3, 40]
NAMES = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings"}
LLAMA_TIED = replace(LLAMA, tie_word_embeddings=True)


def table() -> Embedding:
    made = Embedding(7, 4, init=Init(1, np.float64))
    made.freeze()
    return made


def adapted(shape: TransformerConfig, config: LoraConfig) -> PeftModel:
    return get_peft_model(small(shape), config, host=lora_host())


# ---------- the layers ----------


def test_rows_of_trained_ids_are_replaced() -> None:
    made = TrainedTokens(table(), [5, 2])
    ids = np.array([[5, 0, 2], [2, 5, 6]])
    np.testing.assert_array_equal(made(ids).data, table().weight.data[ids])
    made.trainable_tokens_delta.data = np.arange(8.0).reshape(2, 4)
    expected = table().weight.data.copy()
    expected[[5, 2]] = made.trainable_tokens_delta.data
    np.testing.assert_array_equal(made(ids).data, expected[ids])
    merged = made.merge()
    assert isinstance(merged, Embedding)
    np.testing.assert_array_equal(merged.weight.data, expected)
    with pytest.raises(TokenError, match="token id 7 at position"):
        made(np.array([[7]]))


def test_their_gradients_are_the_differences() -> None:
    made = TrainedTokens(table(), [5, 2])
    ids = np.array([[5, 0, 2], [2, 5, 6]])

    def vectors(_: Tensor) -> Tensor:
        return made(ids)

    assert check_gradients(vectors, [made.trainable_tokens_delta]) < 1e-8
    base = Linear(4, 7, init=Init(2, np.float64))
    head = TrainedLogits(base, [5, 2], Parameter(np.arange(8.0).reshape(2, 4)))
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 4)), requires_grad=True)

    def scores(x: Tensor, *_: Tensor) -> Tensor:
        return head(x)

    assert check_gradients(scores, [x, head.trainable_tokens_delta, base.weight]) < 1e-8


def test_an_output_layer_scores_trained_ids_by_their_rows() -> None:
    base = Linear(4, 7, bias=False, init=Init(2, np.float64))
    rows = Parameter(np.arange(8.0).reshape(2, 4))
    head = TrainedLogits(base, [5, 2], rows)
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    weight = base.weight.data.copy()
    weight[[5, 2]] = rows.data
    np.testing.assert_allclose(head(Tensor(x)).data, x @ weight.T)
    merged = head.merge()
    assert isinstance(merged, Linear)
    np.testing.assert_array_equal(merged.weight.data, weight)
    lora = LoraLinear(base, LoraConfig(), "head", Init(0, np.float64))
    assert TrainedLogits(lora, [5], rows).merge() is None
    assert TrainedTokens(TrainedTokens(table(), [1]), [2]).merge() is None


# ---------- in a model ----------


@pytest.mark.parametrize("shape", [*FAMILIES.values(), LLAMA_TIED], ids=[*FAMILIES, "tied"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_model_is_adapted_counted_saved_loaded_and_merged(
    shape: TransformerConfig, by_name: bool, tmp_path: Path
) -> None:
    tokens = {NAMES[shape.model_type]: TOKENS} if by_name else TOKENS
    config = LoraConfig(r=2, trainable_token_indices=tokens)
    model = small(shape)
    before = logits(model)
    peft = get_peft_model(model, config, host=lora_host())
    np.testing.assert_allclose(logits(peft), before, atol=1e-6)
    bare = count_recipe(shape, LoraConfig(r=2), lora_host())[0]
    counted = count_recipe(shape, config, lora_host())
    assert counted == peft.get_nb_trainable_parameters()
    assert counted[0] - bare == len(TOKENS) * 16
    shake(peft)
    expected = logits(peft)
    assert np.abs(expected - before).max() > 1e-3
    peft.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(small(shape), tmp_path / "adapter", host=lora_host())
    np.testing.assert_array_equal(logits(loaded), expected)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), before)
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(logits(merged), expected, atol=2e-6)
    save_model(merged, tmp_path / "merged")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "merged")), logits(merged))


@pytest.mark.parametrize("shape", [GPT2, LLAMA_TIED], ids=["gpt2", "llama"])
def test_both_sides_of_a_tie_have_the_same_vectors(shape: TransformerConfig) -> None:
    peft = adapted(shape, LoraConfig(r=2, trainable_token_indices=TOKENS))
    model = peft.base_model
    assert isinstance(model.embed_tokens, TrainedTokens)
    assert isinstance(model.lm_head, TrainedLogits)
    shared = model.embed_tokens.trainable_tokens_delta
    assert model.lm_head.trainable_tokens_delta is shared
    assert sum(p is shared for p in peft.trainable_parameters()) == 1
    shared.data = shared.data + 1
    apart = logits(peft) - logits(small(shape))
    assert np.abs(apart[..., TOKENS]).max() > 0.1
    merged = peft.merge_and_unload()
    assert isinstance(merged.embed_tokens, Embedding)
    assert isinstance(merged.lm_head, Linear)
    assert merged.lm_head.weight is merged.embed_tokens.weight


def test_both_sides_of_a_tie_may_be_named_with_the_same_tokens() -> None:
    both = {"embed_tokens": TOKENS, "lm_head": TOKENS}
    peft = adapted(LLAMA_TIED, LoraConfig(r=2, trainable_token_indices=both))
    assert isinstance(peft.base_model.lm_head, TrainedLogits)
    assert len([n for n in peft.record.named_parameters(0) if "tokens_delta" in n]) == 1


def test_a_head_of_its_own_has_vectors_of_its_own(tmp_path: Path) -> None:
    config = LoraConfig(r=2, trainable_token_indices={"lm_head": TOKENS, "embed_tokens": [1]})
    peft = adapted(LLAMA, config)
    assert count_recipe(LLAMA, config, lora_host()) == peft.get_nb_trainable_parameters()
    shake(peft)
    peft.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {k.removeprefix("base_model.model."): v.shape for k, v in stored.items()}
    assert shapes["lm_head.token_adapter.trainable_tokens_delta"] == (3, 16)
    assert shapes["model.embed_tokens.token_adapter.trainable_tokens_delta"] == (1, 16)
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_a_loss_reaches_only_the_tokens_that_are_trained() -> None:
    peft = adapted(GPT2, LoraConfig(r=2, trainable_token_indices=TOKENS))
    peft.loss(IDS, labels=IDS).backward()
    delta = peft.record.named_parameters(0)["transformer.wte.trainable_tokens_delta"]
    assert delta.grad is not None
    assert delta.grad.shape == (3, 16)
    assert np.abs(delta.grad).min(axis=1).max() > 0
    assert all(p.grad is None for p in small(GPT2).parameters())


def test_two_steps_train_tokens_of_their_own() -> None:
    recipe = [
        LoraConfig(r=2, trainable_token_indices=[1, 2]),
        LoraConfig(r=2, trainable_token_indices=[4, 3]),
    ]
    peft = get_peft_model(small(GPT2), recipe, host=lora_host())
    shake(peft)
    expected = logits(peft)
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(logits(merged), expected, atol=2e-6)
    assert isinstance(merged.embed_tokens, Embedding)
    assert isinstance(merged.lm_head, Linear)
    assert merged.lm_head.weight is merged.embed_tokens.weight


# ---------- what is refused ----------


@pytest.mark.parametrize(
    ("shape", "settings", "problem"),
    [
        (LLAMA, {"trainable_token_indices": [49, 50]}, "model.embed_tokens has no token 50"),
        (
            GPT2,
            {"trainable_token_indices": {"wet": [1]}},
            "'wet' matches no module; did you mean 'wte'",
        ),
        (
            LLAMA,
            {"trainable_token_indices": {"q_proj": [1]}},
            "q_proj: expected an embedding or the output layer, got Linear",
        ),
        (
            BERT_CLASSIFIER,
            {"trainable_token_indices": {"classifier": [1]}},
            "classifier: expected an embedding or the output layer, got Linear",
        ),
        (
            LLAMA,
            {"trainable_token_indices": [1], "target_modules": ["embed_tokens"]},
            "model.embed_tokens is a target too",
        ),
        (
            LLAMA,
            {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "model.embed_tokens is trained whole by modules_to_save",
        ),
        (
            BERT_CLASSIFIER,
            {
                "trainable_token_indices": [1],
                "modules_to_save": ["bert.embeddings.word_embeddings"],
            },
            "word_embeddings is trained whole by modules_to_save",
        ),
        (
            GPT2,
            {"trainable_token_indices": {"lm_head": [1]}},
            "lm_head and transformer.wte share one weight: name both with the same tokens",
        ),
        (
            GPT2,
            {"trainable_token_indices": {"lm_head": [1], "wte": [2]}},
            "lm_head and transformer.wte share one weight",
        ),
    ],
)
def test_invalid_tokens_are_refused(
    shape: TransformerConfig, settings: dict[str, object], problem: str
) -> None:
    config = LoraConfig(**{"r": 2, **settings})  # type: ignore[arg-type]
    model = small(shape)
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match="step 0: trainable_token_indices: ") as caught:
        get_peft_model(model, config, host=lora_host())
    assert problem in str(caught.value)
    before.assert_unchanged(model)


def test_a_token_that_two_steps_would_train_is_refused() -> None:
    recipe = [
        LoraConfig(r=2, trainable_token_indices=[1, 2]),
        LoraConfig(r=2, trainable_token_indices={"embed_tokens": [2, 3]}),
    ]
    with pytest.raises(PeftError, match=r"step 1: .*: step 0 already trains token 2"):
        get_peft_model(small(), recipe, host=lora_host())


def test_tokens_of_an_output_layer_that_another_step_adapted_are_refused() -> None:
    recipe = [
        LoraConfig(r=2, target_modules=["lm_head"]),
        LoraConfig(r=2, trainable_token_indices={"lm_head": [1]}),
    ]
    with pytest.raises(PeftError, match=r"lm_head: expected a plain layer .*, got LoraLinear"):
        get_peft_model(small(), recipe, host=lora_host())
