import dataclasses

import numpy as np
import pytest

from tinygrad_peft.arrays import IntArray
from tinygrad_peft.errors import ConfigError, NumericalError, TokenError
from tinygrad_peft.nn import (
    Generation,
    GenerationSettings,
    Init,
    RopeScaling,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.nn.generate import generate
from tinygrad_peft.tensor import no_grad

LEARNED = TransformerConfig(
    vocab_size=23,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=24,
    packed_qkv=True,
)
ROTARY = dataclasses.replace(
    LEARNED,
    norm="rms_norm",
    positions="rotary",
    packed_qkv=False,
    num_key_value_heads=2,
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
)
CONFIGS = {
    "gpt2": LEARNED,
    "gpt2 with separate projections": dataclasses.replace(LEARNED, packed_qkv=False),
    "llama with grouped queries": ROTARY,
    "llama with one key head, tied": dataclasses.replace(
        ROTARY, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "llama with scaled positions": dataclasses.replace(
        ROTARY, rope_scaling=RopeScaling(rope_type="linear", factor=2.0)
    ),
}
PROMPT = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def make(config: TransformerConfig) -> Transformer:
    """A model with weights so large that its likeliest tokens differ from place to place."""
    model = Transformer(config, Init(1))
    rng = np.random.default_rng(6)
    for parameter in model.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.5, parameter.shape).astype(np.float32)
    model.eval()
    return model


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return make(request.param)


@pytest.fixture
def gpt2() -> Transformer:
    return make(LEARNED)


def by_hand(model: Transformer, ids: IntArray, new: int) -> IntArray:
    """The whole text read anew for every token."""
    with no_grad():
        for _ in range(new):
            ids = np.concatenate([ids, model(ids).data[:, -1:].argmax(-1)], axis=1)
    return ids


def test_generation_with_a_cache_equals_generation_without(model: Transformer) -> None:
    made = generate(model, PROMPT, max_new_tokens=12)
    np.testing.assert_array_equal(made, by_hand(model, PROMPT, 12))
    assert made.dtype == np.int64
    assert len(set(made[0, 5:].tolist())) > 2, "a model that repeats itself would hide mistakes"


def test_rows_padded_on_the_left_are_continued_as_they_are_alone(model: Transformer) -> None:
    prompts = [[7], [3, 1, 4, 1, 5], [9, 2, 6]]
    padded = np.array([[0] * (5 - len(p)) + p for p in prompts])
    mask = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    together = generate(model, padded, max_new_tokens=9, attention_mask=mask)
    for row, prompt in zip(together, prompts, strict=True):
        alone = generate(model, np.array([prompt]), max_new_tokens=9)
        np.testing.assert_array_equal(row[5:], alone[0, len(prompt) :])


def test_a_transformer_generates_by_itself(gpt2: Transformer) -> None:
    expected = generate(gpt2, PROMPT, max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    made = gpt2.generate(PROMPT, max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    np.testing.assert_array_equal(made, expected)


def test_nothing_is_recorded(gpt2: Transformer) -> None:
    generate(gpt2, PROMPT, max_new_tokens=2)
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    assert gpt2(PROMPT).requires_grad, "recording goes on afterwards"


def test_prompt_and_new_tokens_may_fill_all_positions(gpt2: Transformer) -> None:
    made = generate(gpt2, np.ones((1, 20), int), max_new_tokens=4)
    assert made.shape == (1, 24)


def test_padding_takes_no_positions(gpt2: Transformer) -> None:
    ids, mask = np.zeros((1, 40), int), np.zeros((1, 40), bool)
    ids[:, 35:], mask[:, 35:] = PROMPT[:1], True
    made = generate(gpt2, ids, max_new_tokens=4, attention_mask=mask)
    np.testing.assert_array_equal(made[:, 40:], by_hand(gpt2, PROMPT[:1], 4)[:, 5:])


# ---------- stopping ----------


def test_a_finished_row_continues_with_padding(gpt2: Transformer) -> None:
    free = generate(gpt2, PROMPT, max_new_tokens=8)[:, 5:]
    stop = next(int(t) for t in free[0] if t not in free[1])
    place = free[0].tolist().index(stop)
    made = generate(gpt2, PROMPT, max_new_tokens=8, stop_ids=[stop], pad_id=22)[:, 5:]
    np.testing.assert_array_equal(made[0, : place + 1], free[0, : place + 1])
    assert (made[0, place + 1 :] == 22).all()
    np.testing.assert_array_equal(made[1], free[1])


def test_generation_ends_when_every_row_has_stopped(gpt2: Transformer) -> None:
    first = generate(gpt2, PROMPT, max_new_tokens=1)[:, -1]
    steps: list[IntArray] = []
    made = generate(
        gpt2, PROMPT, max_new_tokens=8, stop_ids=set(first.tolist()), on_token=steps.append
    )
    assert made.shape == (2, 6)
    assert len(steps) == 1


def test_on_token_gets_every_step(gpt2: Transformer) -> None:
    steps: list[IntArray] = []
    made = generate(gpt2, PROMPT, max_new_tokens=3, on_token=steps.append)
    np.testing.assert_array_equal(np.stack(steps, axis=1), made[:, 5:])


# ---------- drawing ----------


def test_the_same_seed_draws_the_same_and_another_does_not(gpt2: Transformer) -> None:
    first, again, other = (
        generate(gpt2, PROMPT, max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("temperature", [1e-4, 1e-310])
def test_a_temperature_near_zero_is_greedy(gpt2: Transformer, temperature: float) -> None:
    cold = generate(gpt2, PROMPT, max_new_tokens=6, temperature=temperature)
    np.testing.assert_array_equal(cold, generate(gpt2, PROMPT, max_new_tokens=6))


def test_tokens_are_drawn_as_often_as_they_are_likely(gpt2: Transformer) -> None:
    prompts = np.repeat(PROMPT[:1], 4000, axis=0)
    drawn = generate(gpt2, prompts, max_new_tokens=1, temperature=2.0)[:, -1]
    logits = gpt2(PROMPT[:1]).numpy()[0, -1] / 2.0
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    found = np.bincount(drawn, minlength=23) / 4000
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.9])
def test_top_p_draws_from_the_nucleus_and_from_all_of_it(gpt2: Transformer, top_p: float) -> None:
    logits = gpt2(PROMPT[:1]).numpy()[0, -1].astype(np.float64) / 3.0
    likely = np.exp(logits - logits.max())
    likely /= likely.sum()
    order = np.argsort(-likely)
    count = int(np.searchsorted(np.cumsum(likely[order]), top_p)) + 1
    prompts = np.repeat(PROMPT[:1], 4000, axis=0)
    drawn = generate(gpt2, prompts, max_new_tokens=1, temperature=3.0, top_p=top_p)[:, -1]
    assert set(drawn.tolist()) == set(order[:count].tolist())


# ---------- errors ----------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"temperature": -1.0}, "temperature: expected a finite number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature: .*, got nan"),
        ({"top_p": 0.0}, "top_p: expected above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p: .*, got 1.1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"max_new_tokens": "3"}, "max_new_tokens: expected an integer, got '3'"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: expected an integer, got 2.5"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"pad_id": True}, "pad_id: expected an integer, got True"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"stop_ids": 5}, "stop_ids: expected a collection of integers, got 5"),
        ({"stop_ids": [5, "a"]}, r"stop_ids\[1\]: expected an integer, got 'a'"),
        ({"stop_ids": iter([5])}, "stop_ids: expected a collection of integers, got <list_iter"),
        ({"pad_id": 23}, r"pad_id: expected 0 to 22, got \[23\]"),
        ({"stop_ids": [5, -1]}, r"stop_ids and pad_id: expected 0 to 22, got \[-1\]"),
    ],
)
def test_invalid_settings_are_refused(
    gpt2: Transformer, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(gpt2, PROMPT, **{"max_new_tokens": 1, **settings})  # type: ignore[arg-type]


def test_one_error_lists_every_invalid_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        Generation(max_new_tokens=0, temperature=-1, top_p=2, seed=-3)
    assert str(caught.value).splitlines() == [
        "invalid Generation:",
        "  - max_new_tokens: expected at least 1, got 0",
        "  - temperature: expected a finite number of at least 0, got -1",
        "  - top_p: expected above 0 and at most 1, got 2",
        "  - seed: expected at least 0, got -3",
    ]


def test_one_error_lists_all_that_the_model_cannot_do(gpt2: Transformer) -> None:
    gpt2.with_classifier(2)
    with pytest.raises(ConfigError) as caught:
        gpt2.generate(PROMPT, max_new_tokens=1, stop_ids=[40, -1], pad_id=23)
    assert str(caught.value).splitlines() == [
        "the model cannot generate:",
        "  - the model has no language-model head",
        "  - stop_ids and pad_id: expected 0 to 22, got [-1, 23, 40]",
    ]


def test_settings_are_one_object_or_keywords(gpt2: Transformer) -> None:
    settings = Generation(max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    by_keyword = gpt2.generate(PROMPT, max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    np.testing.assert_array_equal(gpt2.generate(PROMPT, settings), by_keyword)
    np.testing.assert_array_equal(generate(gpt2, PROMPT, settings), by_keyword)


def test_settings_in_both_ways_or_none_are_refused(gpt2: Transformer) -> None:
    with pytest.raises(ConfigError, match="or its settings by keyword, got both"):
        gpt2.generate(PROMPT, Generation(max_new_tokens=1), top_p=0.5)
    with pytest.raises(TypeError, match="max_new_tokens"):
        gpt2.generate(PROMPT)


def test_the_keywords_are_the_fields_of_a_generation() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Generation)}
    assert GenerationSettings.__annotations__ == fields


def test_a_model_without_a_language_head_is_refused(gpt2: Transformer) -> None:
    gpt2.with_classifier(2)
    with pytest.raises(ConfigError, match="the model has no language-model head"):
        generate(gpt2, PROMPT, max_new_tokens=1)


@pytest.mark.parametrize(
    "prompt", [np.zeros((1, 0), int), np.zeros(3, int), np.zeros((1, 3))], ids=str
)
def test_a_prompt_without_tokens_is_refused(gpt2: Transformer, prompt: IntArray) -> None:
    with pytest.raises(TokenError, match="expected integers"):
        generate(gpt2, prompt, max_new_tokens=1)


def test_a_token_outside_the_vocabulary_is_refused(gpt2: Transformer) -> None:
    with pytest.raises(TokenError, match=r"token id 23 at position \(0, 1\)"):
        generate(gpt2, np.array([[1, 23, 4]]), max_new_tokens=1)


def test_padding_on_the_right_is_refused(gpt2: Transformer) -> None:
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(TokenError, match=r"padding on the left alone, .* rows \[1\]"):
        generate(gpt2, PROMPT, max_new_tokens=1, attention_mask=mask)


def test_holes_in_the_mask_are_refused(gpt2: Transformer) -> None:
    mask = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with pytest.raises(TokenError, match=r"rows \[0\]"):
        generate(gpt2, PROMPT, max_new_tokens=1, attention_mask=mask)


def test_a_mask_of_another_shape_is_refused(gpt2: Transformer) -> None:
    with pytest.raises(TokenError, match=r"attention_mask: expected \(2, 5\), got \(2, 4\)"):
        generate(gpt2, PROMPT, max_new_tokens=1, attention_mask=np.ones((2, 4)).astype(int))


def test_more_tokens_than_positions_are_refused_before_the_first(gpt2: Transformer) -> None:
    steps: list[IntArray] = []
    with pytest.raises(TokenError, match="5 tokens and 20 new ones are more than the model's 24"):
        generate(gpt2, PROMPT, max_new_tokens=20, on_token=steps.append)
    assert not steps


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_no_token_is_made_of_logits_that_are_not_finite(broken: float, temperature: float) -> None:
    model = make(ROTARY)  # whose head is not tied
    model.state_dict()["embed_tokens.weight"][PROMPT[1, 0]] = broken
    expected = "the next token's logits: expected finite numbers, rows 1 have NaN or infinity"
    with pytest.raises(NumericalError, match=expected):
        model.generate(PROMPT[:, :1], max_new_tokens=3, temperature=temperature)
