"""Prompts and completions under real kinds of tokenizers."""

from collections.abc import Callable

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs the text extra")
from tokenizers import Tokenizer as Backend  # noqa: E402
from tokenizers import (  # noqa: E402
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tinygrad_peft.models import Tokenizer  # noqa: E402
from tinygrad_peft.train.encoding import encode_causal, prompt_ids  # noqa: E402
from tinygrad_peft.train.examples import CompletionExample, TextExample  # noqa: E402
from tinygrad_peft.train.labels import IGNORED  # noqa: E402

CORPUS = ["the film was good", "question answer yes", "a bad film a long plot"] * 20
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def trained(backend: Backend, *, begins: bool = True) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[UNKNOWN, BEGIN, END],
        initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), "▁", "\n"],
    )
    backend.train_from_iterator(CORPUS, trainer)
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))]
        )
    return Tokenizer(backend, {"bos_token": BEGIN, "eos_token": END})


def prepending() -> Tokenizer:
    """Llama 2 and TinyLlama: the normaliser puts a space before every text."""
    backend = Backend(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training alone
    tokenizer = trained(backend)
    backend.pre_tokenizer = None
    return tokenizer


def metaspace() -> Tokenizer:
    """Mistral and T5: the pre-tokenizer does."""
    backend = Backend(models.BPE(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return trained(backend)


def byte_level() -> Tokenizer:
    """Llama 3."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return trained(backend)


def gpt2() -> Tokenizer:
    """GPT-2: spaces are trimmed from the offsets."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return trained(backend, begins=False)


PAIRS = [
    ("question: 2+2=", "4"),
    ("answer:\n", "yes"),
    ("the film was", " good"),
    ("the film was", "  good"),
    ("the film", ", a long\nplot"),
    ("ein Käse 😀", " für Ödön"),
    ("", "the film"),
]


@pytest.mark.parametrize("make", [prepending, metaspace, byte_level, gpt2])
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_a_completion_has_the_tokens_that_it_has_in_the_one_text(
    make: Callable[[], Tokenizer], prompt: str, completion: str
) -> None:
    tokenizer = make()
    [row] = encode_causal([CompletionExample(prompt, completion)], tokenizer)
    assert tokenizer.eos_id is not None
    assert list(row.input_ids) == [*tokenizer.encode(prompt + completion), tokenizer.eos_id]
    assert isinstance(row.labels, tuple)
    start = sum(label == IGNORED for label in row.labels)
    assert row.labels == (IGNORED,) * start + row.input_ids[start:]
    if prompt:  # an empty text has tokens of its own in some tokenizers
        assert list(row.input_ids[:start]) == prompt_ids(prompt, tokenizer)


@pytest.mark.parametrize("make", [prepending, metaspace, byte_level, gpt2])
def test_a_token_across_the_boundary_is_learned_and_its_prompt_counted(
    make: Callable[[], Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make()
    examples = [CompletionExample("the film was ", "good"), CompletionExample("the fi", "lm was")]
    rows = encode_causal(examples, tokenizer, where="x.jsonl: ")
    good, film = (tokenizer.encode(text)[-1] for text in ("the film was good", "the film"))
    learned = [[label for label in row.labels if label != IGNORED] for row in rows]  # type: ignore[union-attr]
    assert learned[0] == [good, tokenizer.eos_id]
    assert learned[1][0] == film
    [told] = caplog.messages
    assert told == (
        "x.jsonl: 2 of 2 prompts have other tokens without their completions, and so in generation "
        "(a prompt should not end in a space or within a word)"
    )


@pytest.mark.parametrize("make", [prepending, byte_level])
def test_a_text_from_a_chat_template_begins_and_ends_once(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    bare = encode_causal([TextExample("the film")], tokenizer)[0].input_ids
    told = encode_causal([TextExample(f"{BEGIN}the film{END}")], tokenizer)[0].input_ids
    assert (told[0], told[-1]) == (bare[0], bare[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert (told.count(told[0]), told.count(told[-1])) == (1, 1)
    assert prompt_ids(f"{BEGIN}the film", tokenizer) == list(told[:-1])
    # An end in the middle is the data's own.
    turns = encode_causal([TextExample(f"{BEGIN}the{END}film")], tokenizer)[0].input_ids
    assert turns.count(tokenizer.eos_id) == 2


def test_bert_keeps_its_last_token_and_has_it_once() -> None:
    vocabulary = {word: place for place, word in enumerate((UNKNOWN, "[CLS]", "[SEP]", "a", "b"))}
    backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    text = Tokenizer(backend).tokenize("[CLS] a b a [SEP]").undoubled()
    assert text.shortened(None) == (1, 3, 4, 3, 2)
    assert text.shortened(4) == (1, 3, 4, 2)
    assert Tokenizer(backend).tokenize("").undoubled().shortened(None) == (1, 2)
    assert Tokenizer(backend).tokenize("a").opened().ids == [1, 3]
