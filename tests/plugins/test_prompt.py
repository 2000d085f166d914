import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import BERT, BERT_CLASSIFIER, GPT2, IDS, LLAMA, logits, shake, small
from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import CheckpointError, ConfigError, MissingExtraError, TokenError
from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import (
    Embedding,
    Init,
    Module,
    NoPrompt,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.nn.virtual import Front
from tinygrad_peft.peft import (
    Host,
    PeftModel,
    VirtualConfig,
    count_recipe,
    get_peft_model,
    parse_method,
)
from tinygrad_peft.reference import PromptTuning, Reparameterization
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_prompt import (
    PromptEncoder,
    PromptEncoderConfig,
    PromptTuningConfig,
    SoftPrompt,
)

TEXT = np.array([[7, 30, 2, 41]])
WORDS = ("[UNK]", "[CLS]", "[SEP]", "is", "this", "film", "good")


def prompt_of(peft: PeftModel) -> Array:
    """Return the virtual tokens of a model (N, D)."""
    virtual = peft.base_model.prompt()
    assert virtual is not None
    return virtual.states.data


def table(model: Transformer) -> Array:
    assert isinstance(model.embed_tokens, Embedding)
    return model.embed_tokens.weight.data


# ---------- the formula ----------


@pytest.mark.parametrize(
    "config", [GPT2, LLAMA, BERT, BERT_CLASSIFIER], ids=["gpt2", "llama", "bert", "classifier"]
)
def test_a_texts_embeddings_as_a_prompt_equal_the_text(config: TransformerConfig) -> None:
    model = small(config, np.float64)
    with no_grad():
        together = model(np.concatenate([np.repeat(TEXT, 2, axis=0), IDS], axis=1)).data
    peft = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=4))
    (parameter,) = peft.trainable_parameters()
    parameter.data = table(model)[TEXT[0]]
    np.testing.assert_allclose(logits(peft), together, rtol=1e-10, atol=1e-12)


def test_the_prompt_is_prepended_like_the_references(rng: np.random.Generator) -> None:
    reference = PromptTuning(6, 3, rng=rng)
    prompt = SoftPrompt(NoPrompt(), reference.prompt)
    x, g = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 8, 6))
    ours = Front(prompt(), None).before(Tensor(x))
    np.testing.assert_array_equal(ours.data, reference.forward(x))
    ours.backward(g)
    reference.backward(g)
    assert prompt.prompt_embeddings.grad is not None
    np.testing.assert_allclose(prompt.prompt_embeddings.grad, reference.prompt_grad, rtol=1e-12)


def test_the_encoder_matches_the_reference(rng: np.random.Generator) -> None:
    config = PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5)
    encoder = PromptEncoder(NoPrompt(), config, 6, Init(0, np.float64))
    reference = Reparameterization(3, [6, 5, 5, 6], "relu")
    reference.embedding = encoder.embedding.data
    biases = [linear.bias for linear in encoder.layers if linear.bias is not None]
    for bias in biases:
        bias.data = rng.normal(size=bias.shape)
    reference.weights = [linear.weight.data for linear in encoder.layers]
    reference.biases = [bias.data for bias in biases]
    states = encoder.states()
    np.testing.assert_allclose(states.data, reference.forward(), rtol=1e-12, atol=1e-14)
    g = rng.normal(size=states.shape)
    states.backward(g)
    reference.backward(g)
    expected = [reference.embedding_grad]
    for weight, bias_grad in zip(reference.weight_grads, reference.bias_grads, strict=True):
        expected += [weight, bias_grad]
    for parameter, grad in zip(encoder.parameters(), expected, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad, grad, rtol=1e-10, atol=1e-12)


def test_the_last_virtual_token_predicts_the_first_of_the_text() -> None:
    peft = get_peft_model(small(LLAMA, np.float64), PromptTuningConfig(num_virtual_tokens=3))
    scores = logits(peft)[:, 2:-1]  # (B, T, V)
    chances = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(chances, IDS[..., None], axis=-1).mean()
    assert peft.loss(IDS, IDS).item() == pytest.approx(expected, rel=1e-12)


# ---------- flattened ----------


def test_flattening_keeps_the_prompt() -> None:
    config = PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5)
    encoder = PromptEncoder(NoPrompt(), config, 6, Init(0, np.float64))
    twin = encoder.flattened()
    assert [name for name, _ in twin.named_parameters()] == ["prompt_embeddings"]
    assert twin.prompt_embeddings.requires_grad
    np.testing.assert_array_equal(twin().states.data, encoder().states.data)


def test_dropout_applies_in_training_and_never_to_stored_prompts() -> None:
    peft = get_peft_model(
        small(LLAMA), PromptEncoderConfig(encoder_hidden_size=64, encoder_dropout=0.5)
    )
    still = [prompt_of(peft) for _ in range(2)]
    peft.train()
    moving = [prompt_of(peft) for _ in range(2)]
    (stored,) = peft.record.stored_parameters(0).values()
    np.testing.assert_array_equal(still[0], still[1])
    np.testing.assert_array_equal(stored.data, still[0])
    assert np.abs(moving[0] - moving[1]).max() > 1e-3


@pytest.mark.parametrize("config", [PromptTuningConfig(), PromptEncoderConfig()])
def test_it_is_stored_under_pefts_name_without_a_path(config: VirtualConfig) -> None:
    stored = get_peft_model(small(LLAMA), config).record.stored_parameters(0)
    assert {name: p.shape for name, p in stored.items()} == {"prompt_embeddings": (20, 16)}


# ---------- where it starts ----------


def spread_out(config: TransformerConfig) -> Transformer:
    """Return a model whose embedding features have different means and deviations."""
    model = small(config)
    rng = np.random.default_rng(3)
    scale, shift = rng.uniform(0.05, 2, 16), rng.normal(0, 1, 16)
    weight = dict(model.named_parameters())["embed_tokens.weight"]
    weight.data = (rng.normal(size=weight.shape) * scale + shift).astype(np.float32)
    return model


def test_random_initialisation_resembles_tokens() -> None:
    model = spread_out(LLAMA)
    tokens = table(model).copy()
    # Many virtual tokens, so that their mean and deviation show the distribution.
    wide = Transformer(TransformerConfig(**{**vars(LLAMA), "max_position_embeddings": 5000}))
    wide.load_state_dict(model.state_dict())
    found = prompt_of(get_peft_model(wide, PromptTuningConfig(num_virtual_tokens=4000)))
    spread = tokens.std(axis=0)
    assert np.abs((found.mean(axis=0) - tokens.mean(axis=0)) / spread).max() < 0.1
    np.testing.assert_allclose(found.std(axis=0), spread, rtol=0.1)


def test_sampled_tokens_do_not_repeat_within_the_vocabulary() -> None:
    model = spread_out(LLAMA)
    config = PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB")
    found = chosen(table(model), prompt_of(get_peft_model(model, config)))
    assert len(set(found)) == 20
    other = prompt_of(get_peft_model(spread_out(LLAMA), config, seed=1))
    assert chosen(table(model), other) != found


def test_a_prompt_longer_than_the_vocabulary_repeats_tokens_evenly() -> None:
    few = TransformerConfig(**{**vars(LLAMA), "vocab_size": 5})
    config = PromptTuningConfig(num_virtual_tokens=15, prompt_tuning_init="SAMPLE_VOCAB")
    model = spread_out(few)
    found = chosen(table(model), prompt_of(get_peft_model(model, config)))
    assert sorted(found) == sorted([*range(5)] * 3)


def chosen(tokens: Array, states: Array) -> list[int]:
    """Find the tokens with these embeddings."""
    distances = np.abs(tokens[None] - states[:, None]).max(axis=-1)
    assert not distances.min(axis=1).any()
    return [int(i) for i in distances.argmin(axis=1)]


class Doubled(Module):
    """An embedding of another method, without a weight to look rows up in."""

    def __init__(self, base: TokenEmbedding) -> None:
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.base = base

    def __call__(self, ids: IntArray) -> Tensor:
        return self.base(ids) * 2.0


@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB"])
def test_wrapped_embeddings_are_used_as_they_are(init: str) -> None:
    config = PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init=init)  # type: ignore[arg-type]
    plain, doubled = small(LLAMA), small(LLAMA)
    doubled.embed_tokens = Doubled(doubled.embed_tokens)
    states = [prompt_of(get_peft_model(model, config)) for model in (plain, doubled)]
    np.testing.assert_allclose(states[1], 2 * states[0], rtol=1e-5)


# ---------- a text ----------


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Write a tokenizer that puts [CLS] before and [SEP] after a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the text extra")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=WORDS[0]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    (tmp_path / "words").mkdir()
    backend.save(str(tmp_path / "words" / "tokenizer.json"))
    return tmp_path / "words"


def from_text(tokenizer: Path, text: str, count: int) -> PromptTuningConfig:
    return PromptTuningConfig(
        num_virtual_tokens=count,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tokenizer),
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [(6, [1, 3, 4, 5, 6, 2]), (3, [1, 3, 4]), (8, [1, 3, 4, 5, 6, 2, 1, 3])],
)
def test_a_text_is_truncated_or_repeated(tokenizer: Path, count: int, expected: list[int]) -> None:
    model = spread_out(LLAMA)
    peft = get_peft_model(model, from_text(tokenizer, "is this film good", count))
    assert chosen(table(model), prompt_of(peft)) == expected


def test_loading_a_stored_prompt_needs_no_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    config = from_text(tokenizer, "is this film good", 4)
    peft = get_peft_model(small(LLAMA), config)
    shake(peft)
    peft.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(tokenizer)
    again = PeftModel.from_pretrained(small(LLAMA), tmp_path / "adapter")
    assert again.recipe == (config,)
    np.testing.assert_array_equal(prompt_of(again), prompt_of(peft))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        get_peft_model(small(LLAMA), config)


def test_a_text_without_tokens_or_with_unknown_ones_is_refused(tokenizer: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bare = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    bare.post_processor = tokenizers.processors.TemplateProcessing(single="$A", special_tokens=[])
    bare.save(str(tokenizer / "tokenizer.json"))
    with pytest.raises(ConfigError, match="prompt_tuning_init_text='  ' must have tokens"):
        get_peft_model(small(LLAMA), from_text(tokenizer, "  ", 4))
    few = TransformerConfig(**{**vars(LLAMA), "vocab_size": 5})
    with pytest.raises(TokenError, match=r"token id 5 .* outside the vocabulary 0..4"):
        get_peft_model(small(few), from_text(tokenizer, "film", 4))


def test_a_missing_extra_is_named(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinygrad-peft\[text\]'"):
        get_peft_model(small(LLAMA), from_text(tokenizer, "film", 4))


# ---------- what is known, and not trained ----------

NOT_TRAINED: dict[str, tuple[VirtualConfig, str]] = {
    "an LSTM": (
        PromptEncoderConfig(encoder_reparameterization_type="LSTM", encoder_num_layers=3),
        "encoder_reparameterization_type='LSTM' is not trained here: use 'MLP'",
    ),
    "layers": (PromptEncoderConfig(encoder_num_layers=3), "encoder_num_layers=3: the MLP always"),
    "a text": (
        PromptTuningConfig(prompt_tuning_init_text="good"),
        "prompt_tuning_init='RANDOM' ignores prompt_tuning_init_text: expected 'TEXT'",
    ),
}


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_settings_that_cannot_be_trained_are_refused(name: str) -> None:
    config, said = NOT_TRAINED[name]
    with pytest.raises(ConfigError, match="cannot be trained") as caught:
        get_peft_model(small(LLAMA), config)
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be trained"):
        count_recipe(LLAMA, config, Host.installed())


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_settings_that_cannot_be_trained_are_read(name: str, tmp_path: Path) -> None:
    """PEFT stores a prompt without its network."""
    peft = get_peft_model(small(LLAMA), PromptTuningConfig())
    shake(peft)
    peft.save_pretrained(tmp_path)
    config, _ = NOT_TRAINED[name]
    (tmp_path / "recipe.json").unlink()
    settings = {"peft_type": config.peft_type, **vars(config)}
    text = str({k: v for k, v in settings.items() if v is not None and v != ()})
    (tmp_path / "adapter_config.json").write_text(text.replace("'", '"'), encoding="utf-8")
    again = PeftModel.from_pretrained(small(LLAMA), tmp_path)
    assert again.recipe == (config,)
    np.testing.assert_array_equal(prompt_of(again), prompt_of(peft))


# ---------- counting ----------


@pytest.mark.parametrize(
    ("shape", "config", "count"),
    [
        ("gpt2", PromptTuningConfig(), 15_360),
        ("gpt2", PromptEncoderConfig(encoder_hidden_size=128), 229_376),
        ("llama-7b", PromptTuningConfig(), 81_920),
    ],
)
def test_counts_match_published_ones(shape: str, config: VirtualConfig, count: int) -> None:
    assert count_recipe(named_shape(shape), config, Host.installed())[0] == count


# ---------- settings ----------


def test_the_command_line_takes_its_settings() -> None:
    plugins = Host.installed()
    text = "prompt_tuning:num_virtual_tokens=5,prompt_tuning_init=SAMPLE_VOCAB"
    assert parse_method(text, plugins) == PromptTuningConfig(
        num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB"
    )
    assert parse_method("p_tuning:encoder_hidden_size=7", plugins) == PromptEncoderConfig(
        encoder_hidden_size=7
    )


def test_one_error_lists_every_invalid_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        PromptTuningConfig(num_virtual_tokens=0, prompt_tuning_init="WORDS")  # type: ignore[arg-type]
    assert "num_virtual_tokens: expected at least 1, got 0" in str(caught.value)
    assert "expected one of RANDOM, SAMPLE_VOCAB, TEXT, got" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        PromptTuningConfig(prompt_tuning_init="TEXT")
    assert "prompt_tuning_init='TEXT' needs prompt_tuning_init_text" in str(caught.value)
    assert "prompt_tuning_init='TEXT' needs tokenizer_name_or_path" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        PromptEncoderConfig(
            encoder_hidden_size=0,
            encoder_dropout=1.0,
            encoder_reparameterization_type="GRU",  # type: ignore[arg-type]
        )
    assert "encoder_hidden_size=0 must be at least 1" in str(caught.value)
    assert "encoder_dropout=1.0 must be at least 0 and below 1" in str(caught.value)
    assert "expected one of MLP, LSTM, got 'GRU'" in str(caught.value)
