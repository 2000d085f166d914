"""The tokenizer in an adapter's folder: used, compared with the model's, and merged."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest
from tokenizers import Tokenizer as Backend

from tests.cli.toys import Commands
from tinygrad_peft.cli.tokenizers import tokenizer_of
from tinygrad_peft.errors import AdapterWarning, CheckpointError
from tinygrad_peft.models import Tokenizer, load_config, load_model, load_tokenizer, save_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft_lora import LoraConfig

ADDED = "<|im_start|>"


@pytest.fixture
def base(small_world: Path, tmp_path: Path) -> Path:
    """A model whose embedding has two rows more than its tokenizer has tokens."""
    place, given = tmp_path / "base", small_world / "llama"
    rows = load_tokenizer(given).size + 2
    save_model(Transformer(replace(load_config(given), vocab_size=rows)), place)
    for file in given.glob("*token*.json"):
        copy(file, place)
    return place


def adapter(base: Path, folder: Path, tokens: int = 1) -> Path:
    """An adapter whose tokenizer has more tokens than its base's."""
    get_peft_model(load_model(base), LoraConfig(r=2)).save_pretrained(folder)
    backend = Backend.from_file(str(base / "tokenizer.json"))
    backend.add_special_tokens([ADDED, *(f"<{i}>" for i in range(1, tokens))])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_the_adapters_tokenizer_is_used_and_its_difference_named(
    base: Path, tmp_path: Path
) -> None:
    folder = adapter(base, tmp_path / "adapter")
    with pytest.warns(AdapterWarning) as caught:
        tokenizer = tokenizer_of(base, folder)
    assert str(caught[0].message) == (
        f"{folder}: its tokenizer is used, and not the model's: it has 1 more ({ADDED!r})"
    )
    own = load_tokenizer(base)
    assert len(tokenizer.encode(f"{ADDED}the")) < len(own.encode(f"{ADDED}the"))
    assert own.size in tokenizer.encode(ADDED)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (own.eos_id, own.pad_id)


def test_an_equal_one_is_used_in_silence(base: Path, tmp_path: Path) -> None:
    get_peft_model(load_model(base), LoraConfig(r=2)).save_pretrained(tmp_path / "a")
    load_tokenizer(base).save(tmp_path / "a")
    assert tokenizer_of(base, tmp_path / "a").size == load_tokenizer(base).size


def test_without_one_in_the_adapters_folder_it_is_the_models(base: Path, tmp_path: Path) -> None:
    get_peft_model(load_model(base), LoraConfig(r=2)).save_pretrained(tmp_path / "a")
    assert tokenizer_of(base, tmp_path / "a").document == load_tokenizer(base).document


def test_more_ids_than_the_embedding_has_rows_are_an_error(base: Path, tmp_path: Path) -> None:
    folder, size = adapter(base, tmp_path / "a", tokens=5), load_tokenizer(base).size
    with pytest.raises(CheckpointError) as caught:
        tokenizer_of(base, folder)
    assert f"its tokenizer has {size + 5} ids, and the model's embedding {size + 2} rows" in str(
        caught.value
    )


@pytest.mark.filterwarnings("always::tinygrad_peft.errors.AdapterWarning")
def test_generate_evaluate_and_merge_use_it(base: Path, tmp_path: Path, commands: Commands) -> None:
    folder = adapter(base, tmp_path / "adapter")
    named = ("--model", base, "--adapter", folder)
    ran = commands.ok("generate", *named, "--prompt", f"{ADDED}the", "--max-new-tokens", "1")
    assert f"it has 1 more ({ADDED!r})" in ran.err
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": f"{ADDED}the film"}) + "\n")
    with_it = commands.ok("evaluate", *named, "--data", data, "--json").json["labels"]
    without = commands.ok("evaluate", "--model", base, "--data", data, "--json").json["labels"]
    assert isinstance(with_it, int)
    assert isinstance(without, int)
    assert with_it < without
    commands.ok("merge", *named, "--out", tmp_path / "merged")
    merged = load_tokenizer(tmp_path / "merged")
    assert merged.vocabulary[ADDED] == load_tokenizer(base).size
    assert merged.eos_id == load_tokenizer(base).eos_id


@pytest.mark.filterwarnings("always::tinygrad_peft.errors.AdapterWarning")
def test_an_adapter_trained_further_keeps_it(
    base: Path, tmp_path: Path, commands: Commands
) -> None:
    folder, data = adapter(base, tmp_path / "adapter"), tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": f"{ADDED}the film"}) + "\n")
    ran = commands.ok(
        *("finetune", "--model", base, "--adapter", folder, "--train", data),
        *("--task", "causal-lm", "--epochs", "1", "--out", tmp_path / "more"),
    )
    assert f"it has 1 more ({ADDED!r})" in ran.err
    assert load_tokenizer(tmp_path / "more").vocabulary[ADDED] == load_tokenizer(base).size


def test_every_difference_of_two_tokenizers_is_counted(base: Path) -> None:
    text = json.loads((base / "tokenizer.json").read_text())
    own = load_tokenizer(base)
    assert own.differences(own) == []
    vocabulary = text["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    moved = Tokenizer(Backend.from_str(json.dumps(text)))
    assert moved.differences(own) == [f"2 with other ids ({second!r}, {first!r})"]
    backend = Backend.from_str(own.document)
    backend.add_tokens([f"new{i}" for i in range(7)])
    more = Tokenizer(backend)
    assert more.differences(own) == [
        "7 more ('new0', 'new1', 'new2', 'new3', 'new4', and 2 others)"
    ]
    assert own.differences(more)[0].startswith("7 fewer")
    text = json.loads(own.document)
    text["post_processor"] = None
    plain = Tokenizer(Backend.from_str(json.dumps(text)))
    if plain.document != own.document:
        assert plain.differences(own) == ["the same tokens, and other rules for them"]
