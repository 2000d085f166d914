"""Tokenizers from tokenizer.json and from GGUF files."""

import base64
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="needs the text extra")

from tinygrad_peft.errors import (  # noqa: E402
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
)
from tinygrad_peft.models import Tokenizer, load_tokenizer  # noqa: E402
from tinygrad_peft.models.fetch import find_fetched  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"]


def write_word_tokenizer(directory: Path) -> Path:
    """Write a tokenizer.json in the style of BERT, with padding and truncation left on."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[1])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.enable_padding(length=16)
    backend.enable_truncation(4)
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}', encoding="utf-8")
    return directory


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_directory(write_word_tokenizer(tmp_path / "words"))


# ---------- tokenizer.json ----------


@pytest.mark.parametrize("number", [-1, 7, 2**32, 10**30, True, "3", None, [2**40]])
def test_only_tokens_of_the_vocabulary_end_a_text(tmp_path: Path, number: object) -> None:
    write_word_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": number}), "utf-8")
    assert Tokenizer.from_directory(tmp_path).end_ids == set()


def test_padding_and_truncation_in_the_file_are_ignored(words: Tokenizer) -> None:
    assert words.encode("good film") == [2, 4, 6, 3]
    assert words.encode("good bad good bad good") == [2, 4, 5, 4, 5, 4, 3]


def test_truncation_keeps_the_special_token_at_the_end(words: Tokenizer) -> None:
    assert words.encode("good bad film", max_length=4) == [2, 4, 5, 3]
    assert words.encode("good bad film", max_length=2) == [2, 3]
    assert words.encode("good bad film", max_length=2, add_special_tokens=False) == [4, 5]


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 6, 99])
def test_truncation_matches_the_tokenizers_package(tmp_path: Path, max_length: int) -> None:
    directory = write_word_tokenizer(tmp_path / "words")
    reference = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    reference.no_padding()
    reference.enable_truncation(max_length)
    text = "good [SEP] bad film"
    ours = Tokenizer.from_directory(directory).encode(text, max_length=max_length)
    assert ours == reference.encode(text).ids


def test_a_max_length_without_room_for_special_tokens_is_an_error(words: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="max_length: expected at least 2, got 1"):
        words.encode("good", max_length=1)
    with pytest.raises(ConfigError, match="max_length: expected at least 1, got 0"):
        words.encode("good", max_length=0, add_special_tokens=False)


def test_a_batch_is_encoded_text_by_text(words: Tokenizer) -> None:
    texts = ["good", "", "bad bad film good"]
    assert words.encode_batch(texts, max_length=4) == [
        words.encode(text, max_length=4) for text in texts
    ]
    assert words.encode_batch([]) == []


def test_decoding_skips_special_tokens_unless_asked_not_to(words: Tokenizer) -> None:
    assert words.decode([2, 4, 6, 3]) == "good film"
    assert words.decode([2, 4, 3], skip_special_tokens=False) == "[CLS] good [SEP]"
    assert words.decode([]) == ""


def test_negative_ids_cannot_be_decoded(words: Tokenizer) -> None:
    with pytest.raises(DataError, match="token ids: expected 0 or more, got -100"):
        words.decode([4, -100])


def test_text_with_half_a_surrogate_pair_is_an_error(words: Tokenizer) -> None:
    with pytest.raises(DataError, match="text is not valid Unicode: character 1 of"):
        words.encode("a\ud800")


def test_special_ids_are_missing_unless_a_file_names_them(words: Tokenizer) -> None:
    assert (words.pad_id, words.bos_id, words.eos_id, words.vocab_size) == (0, None, None, 7)


def test_special_tokens_may_be_written_as_objects_or_in_the_older_file(tmp_path: Path) -> None:
    directory = write_word_tokenizer(tmp_path / "words")
    added = {"bos_token": {"content": "[CLS]", "lstrip": False}, "eos_token": "nowhere"}
    (directory / "special_tokens_map.json").write_text(json.dumps(added), encoding="utf-8")
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, None)


def test_special_tokens_named_only_by_the_model_configuration_are_found(tmp_path: Path) -> None:
    directory = write_word_tokenizer(tmp_path / "words")
    config = {"bos_token_id": 2, "eos_token_id": [3, 99], "pad_token_id": 5}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    assert tokenizer.pad_id == 0  # the tokenizer's own file goes first


def test_a_saved_tokenizer_reads_back_the_same(words: Tokenizer, tmp_path: Path) -> None:
    words.save(tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    assert again.encode("good film nothing") == words.encode("good film nothing") == [2, 4, 6, 1, 3]
    assert again.pad_id == words.pad_id
    saved = json.loads((tmp_path / "copy" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"] is saved["truncation"] is None
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json cannot be used: Model missing"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not JSON: "),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[]", ": expected a JSON object, got a list"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    directory = write_word_tokenizer(tmp_path / "words")
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        load_tokenizer(directory)


def test_a_path_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no tokenizer in .*: expected a file tokenizer.json"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent.gguf")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected a folder or a \.gguf file"):
        load_tokenizer(tmp_path / "model.bin")


def test_a_missing_tokenizers_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_word_tokenizer(tmp_path / "words")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinygrad-peft\[text\]'"):
        load_tokenizer(directory)


# ---------- GGUF ----------

ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|end|>", "<|start|>"]
TOKENS = [*SPECIAL, *ALPHABET, "ab", "Ġab", "12", "<user>"]
MERGES = ["a b", "Ġ ab", "1 2"]
KINDS = [3, 3, *[1] * (len(TOKENS) - 3), 4]


def write_gguf(
    path: Path, *, model: str = "gpt2", pre: str | None = "smollm", **settings: object
) -> Path:
    """Write a GGUF file with a small byte-level tokenizer and no tensors."""
    gguf = pytest.importorskip("gguf", reason="needs the gguf extra")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    lists = {"tokens": TOKENS, "merges": MERGES, "token_type": KINDS}
    for name, value in {**lists, **settings}.items():
        if isinstance(value, list) and value:
            writer.add_array(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [TOKENS[place] for place in tokenizer.encode(text)]


def test_smollm_splits_digits_and_gpt2_does_not(tmp_path: Path) -> None:
    smollm = load_tokenizer(write_gguf(tmp_path / "a.gguf"))
    assert pieces(smollm, "ab ab 12") == ["ab", "Ġab", "Ġ", "1", "2"]
    gpt2 = load_tokenizer(write_gguf(tmp_path / "b.gguf", pre="gpt-2"))
    assert pieces(gpt2, "ab ab 12") == ["ab", "Ġab", "Ġ", "12"]


def test_llama3_takes_whole_tokens_first_and_begins_with_its_own(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", pre="llama-bpe", merges=["x y"], bos_token_id=1)
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_tokenizer(path)  # merges tokens outside of the vocabulary
    path = write_gguf(tmp_path / "b.gguf", pre="llama-bpe", merges=["a b"], bos_token_id=1)
    assert pieces(load_tokenizer(path), "ab ab1234") == [
        "<|start|>",
        "ab",
        "Ġab",
        "1",
        "2",
        "3",
        "4",
    ]


def test_special_tokens_of_a_gguf_stay_whole_and_are_skipped_when_decoding(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(
        write_gguf(tmp_path / "a.gguf", bos_token_id=1, eos_token_id=0, padding_token_id=0)
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 0, 0)
    assert tokenizer.vocab_size == len(TOKENS)
    ids = tokenizer.encode("<|start|>ab<user><|end|>")
    assert [TOKENS[place] for place in ids] == ["<|start|>", "ab", "<user>", "<|end|>"]
    assert tokenizer.decode(ids) == "ab<user>"


def test_first_and_last_tokens_are_added_if_the_gguf_asks_for_them(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf",
        bos_token_id=1,
        eos_token_id=0,
        add_bos_token=True,
        add_eos_token=True,
    )
    tokenizer = load_tokenizer(path)
    assert pieces(tokenizer, "ab") == ["<|start|>", "ab", "<|end|>"]
    assert tokenizer.encode("ab", add_special_tokens=False) == [TOKENS.index("ab")]


@pytest.mark.parametrize("text", ["", "naïve 日本 😀", "a\n\n b\t 34 1½", "<|x|>\x00 \ufeff"])
def test_any_text_survives_a_gguf_tokenizer(tmp_path: Path, text: str) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "a.gguf"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_saved_gguf_tokenizer_reads_back_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "a.gguf", eos_token_id=0))
    tokenizer.save(tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    text = "<|start|> ab 12 é"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.eos_id == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model: expected 'gpt2', got 'llama'"),
        (
            {"pre": "tekken"},
            "tokenizer.ggml.pre: expected 'gpt-2' or 'llama-bpe' or 'smollm', got 'tekken'",
        ),
        ({"pre": None}, "tokenizer.ggml.pre: expected .*, got None"),
        ({"merges": []}, "tokenizer.ggml.merges: expected a list, got None"),
        ({"token_type": [1, 1]}, "expected one tokenizer.ggml.token_type for each of 262 tokens"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_rebuilt_are_named(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", **settings)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=told):
        load_tokenizer(path)


# ---------- the real ones ----------

# As transformers 5.23 encodes them.
MINILM_IDS = {
    "": [101, 102],
    "In 1984 there were 12,345.67 euros (½ off)": [
        *(101, 1999, 3118, 2045, 2020, 2260, 1010, 23785, 1012, 6163, 19329, 1006, 1092, 2125),
        *(1007, 102),
    ],
    "café naïve Straße İstanbul": [101, 7668, 15743, 2358, 27807, 9960, 102],
    "[CLS] a [SEP] b [MASK] [PAD]": [101, 101, 1037, 102, 1038, 103, 0, 102],
    "ABASEMENT, n.": [101, 19557, 3366, 3672, 1010, 1050, 1012, 102],
}
SMOLLM2_IDS = {
    "": [],
    "In 1984 there were 12,345.67 euros (½ off)": [
        *(788, 216, 33, 41, 40, 36, 665, 592, 216, 33, 34, 28, 35, 36, 37, 30, 38, 39, 39236, 365),
        *(16738, 767, 25),
    ],
    "😀👩\u200d👩\u200d👧 emoji 🇫🇷": [
        *(10813, 242, 218, 10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117),
        *(649, 33777, 15107, 225, 121, 10813, 225, 132),
    ],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "ABASEMENT, n.": [5431, 2211, 26040, 28, 304, 30],
}


@pytest.mark.parametrize(
    ("name", "expected", "special_ids", "vocab_size"),
    [
        ("minilm-l6", MINILM_IDS, (0, None, None), 30522),
        ("smollm2", SMOLLM2_IDS, (2, 1, 2), 49152),
    ],
)
def test_the_real_tokenizers_give_the_ids_of_transformers(
    name: str,
    expected: dict[str, list[int]],
    special_ids: tuple[int | None, int | None, int | None],
    vocab_size: int,
) -> None:
    fetched = find_fetched(name)
    if fetched is None:
        pytest.skip(f"{name} is not in the cache (tinygrad-peft fetch {name})")
    tokenizer = load_tokenizer(fetched.path)
    assert {text: tokenizer.encode(text) for text in expected} == expected
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == special_ids
    assert tokenizer.vocab_size == vocab_size


# ---------- broken files ----------


def broken(folder: Path, **parts: object) -> Path:
    """Write a tokenizer of one word, with these parts."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": [], "model": model} | parts
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def charsmap(size: int, rest: bytes) -> dict[str, object]:
    table = base64.b64encode(size.to_bytes(4, "little") + rest).decode()
    return {"type": "Precompiled", "precompiled_charsmap": table}


@pytest.mark.parametrize(
    ("normalizer", "told"),
    [
        (charsmap(0xFFFF_FFFC, b"abcd"), "precompiled_charsmap claims 4294967292 bytes, got 8"),
        (charsmap(8, b""), "precompiled_charsmap claims 8 bytes, got 4"),
        (
            {"type": "Sequence", "normalizers": [charsmap(2**31, b"")]},
            "precompiled_charsmap claims 2147483648 bytes, got 4",
        ),
        ({"type": "Precompiled", "precompiled_charsmap": "AAA="}, "claims 0 bytes, got 2"),
        ({"type": "Precompiled", "precompiled_charsmap": "?"}, "precompiled_charsmap: "),
    ],
)
def test_a_table_that_claims_to_be_longer_takes_no_memory(
    tmp_path: Path, normalizer: dict[str, object], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_tokenizer(broken(tmp_path, normalizer=normalizer))


def test_a_panic_while_a_tokenizer_is_read_is_an_error(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "": 1}, "merges": [["a", ""]]}
    model["continuing_subword_prefix"] = "##"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used: "):
        load_tokenizer(broken(tmp_path, model=model))


def test_a_panic_while_a_tokenizer_is_used_is_an_error(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(broken(tmp_path, normalizer=charsmap(0, b"abc")))
    with pytest.raises(CheckpointError, match="the tokenizer cannot be used: index out of bounds"):
        tokenizer.encode("a")


def test_an_interrupt_is_not_reported_as_a_broken_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    def stopped(text: str) -> None:
        raise KeyboardInterrupt(text)

    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_str=stopped))
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(broken(tmp_path))


def test_a_tokenizer_with_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    file = broken(tmp_path) / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"a": 0', '"a": 0, "a": 1'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has duplicate keys: 'a'"):
        load_tokenizer(tmp_path)
