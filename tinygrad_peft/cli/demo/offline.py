"""The demo without a network: a made-up language of reviews, and a model that learns it here.

The model learns from plain statements how good or bad they are, and how strongly: "very" and
"quite" act on the word that follows, and "not" stands in asides, where it means nothing. Then it
learns to tell good reviews from bad ones, some with a "not" that turns the opinion round: the words
are known, and their effect on each other is new.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tinygrad_peft.cli.demo.job import Job, Say
from tinygrad_peft.cli.demo.recipes import demo_recipes
from tinygrad_peft.errors import MissingExtraError
from tinygrad_peft.models import Tokenizer
from tinygrad_peft.nn import Init, Transformer, TransformerConfig
from tinygrad_peft.train import TrainConfig, train
from tinygrad_peft.train.encoding import encode_classification
from tinygrad_peft.train.examples import ClassificationExample, label_names
from tinygrad_peft.train.progress import progress_display

__all__ = ["OfflineSizes", "offline_job", "plain_statements", "reviews", "word_tokenizer"]

PARTS = ("acting", "plot", "music", "script")
TONES = ("positive", "negative")
OPINIONS = {
    "positive": ("good", "great", "lovely", "brilliant", "moving", "funny", "clever", "fresh"),
    "negative": ("bad", "awful", "dull", "weak", "boring", "silly", "clumsy", "stale"),
}
DEGREES = {"strongly": ("very", "really", "so"), "mildly": ("quite", "rather", "fairly")}
ANY_DEGREE = ("", "", *DEGREES["strongly"], *DEGREES["mildly"])
NEGATED = 0.3  # the share of reviews; without them all, words alone would do
ASIDES = (
    *("i saw it on monday", "we went with friends", "it is two hours long"),
    *("i had not read the book", "it was not raining", "we did not sit in the front"),
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_LENGTH = 32


@dataclass(frozen=True, kw_only=True)
class OfflineSizes:
    """Sizes of the model and its data."""

    width: int = 96
    layers: int = 3
    statements: int = 2_000
    statement_epochs: int = 3
    train: int = 1_500
    test: int = 600
    epochs: int = 5


def offline_job(sizes: OfflineSizes, say: Say) -> Job:
    """Make a pretrained model and reviews, the same each time.

    Raises MissingExtraError without tokenizers, and KeyboardInterrupt if Ctrl-C ended the
    pretraining.
    """
    tokenizer = word_tokenizer()
    say(f"pretraining a small model on {sizes.statements:,} plain statements")
    model = _pretrained(tokenizer, sizes)
    made = reviews(sizes.train + sizes.test, seed=2)
    return Job(
        title="a small model on made-up reviews",
        model=model,
        tokenizer=tokenizer,
        train_set=made[: sizes.train],
        test_set=made[sizes.train :],
        config=TrainConfig(epochs=sizes.epochs, batch_size=16, max_length=MAX_LENGTH),
        recipes=demo_recipes("offline"),
    )


# ---------- the language ----------


def plain_statements(count: int, *, seed: int) -> list[ClassificationExample]:
    """Make opinions that are never negated, each labelled with its degree and its tone."""
    rng = np.random.default_rng(seed)
    return [_statement(rng) for _ in range(count)]


def reviews(count: int, *, seed: int) -> list[ClassificationExample]:
    """Make opinions, some of them negated, each labelled with its tone."""
    rng = np.random.default_rng(seed)
    return [_review(rng) for _ in range(count)]


def _statement(rng: np.random.Generator) -> ClassificationExample:
    degree, tone = _one(tuple(DEGREES), rng), _one(TONES, rng)
    words = [_one(DEGREES[degree], rng), _one(OPINIONS[tone], rng)]
    return ClassificationExample(_text(words, rng), f"{degree} {tone}")


def _review(rng: np.random.Generator) -> ClassificationExample:
    tone = _one(TONES, rng)
    negated = rng.random() < NEGATED
    said = TONES[1 - TONES.index(tone)] if negated else tone
    words = ["not" if negated else "", _one(ANY_DEGREE, rng), _one(OPINIONS[said], rng)]
    return ClassificationExample(_text(words, rng), tone)


def _text(opinion: Sequence[str], rng: np.random.Generator) -> str:
    """Join an opinion of some part of the film and an aside, in any order."""
    clauses = [" ".join(["the", _one(PARTS, rng), "was", *filter(None, opinion)])]
    clauses.insert(int(rng.integers(2)), _one(ASIDES, rng))
    return " , ".join(clauses)


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


# ---------- the model ----------


def word_tokenizer() -> Tokenizer:
    """Make a tokenizer with one token for each word of the language.

    Raises MissingExtraError without tokenizers.
    """
    try:
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415
        from tokenizers import models, pre_tokenizers, processors  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError(
            "tokenizers is not installed: pip install 'tinygrad-peft[text]'"
        ) from None
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *_words()))}
    backend = Backend(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.add_special_tokens(list(SPECIAL))
    return Tokenizer(backend, {"pad_token": "[PAD]", "unk_token": "[UNK]"})


def _words() -> list[str]:
    phrases = ["the was not ,", *PARTS, *ANY_DEGREE, *ASIDES, *chain(*OPINIONS.values())]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _pretrained(tokenizer: Tokenizer, sizes: OfflineSizes) -> Transformer:
    statements = plain_statements(sizes.statements, seed=1)
    labels = label_names(statements)
    model = _fresh_model(tokenizer.vocab_size, sizes)
    model.with_classifier(labels)
    config = TrainConfig(epochs=sizes.statement_epochs, batch_size=16, lr=1e-3)
    encoded = encode_classification(statements, labels, tokenizer, MAX_LENGTH)
    with progress_display() as display:
        result = train(model, encoded, None, config, observers=[display])
    if result.interrupted:
        raise KeyboardInterrupt
    return model


def _fresh_model(vocab_size: int, sizes: OfflineSizes) -> Transformer:
    config = TransformerConfig(
        model_type="bert",
        vocab_size=vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        intermediate_size=4 * sizes.width,
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=2,
        norm_position="post",
        activation="gelu",
        causal=False,
        head="none",
        pooling="mean",
        sentence_transformers=True,
    )
    return Transformer(config, Init(0))
