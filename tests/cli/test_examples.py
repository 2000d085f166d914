"""Data on the command line: its ends, its lengths and its labels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.toys import END, Commands, reviews, write_jsonl, write_model
from tests.peft.small import BERT, LLAMA
from tinygrad_peft.models import load_model, load_tokenizer
from tinygrad_peft.train.encoding import encode_causal
from tinygrad_peft.train.examples import TextExample

TEXTS = ["the film was good", "the plot was bad and long", "a scene"]
Warned = Callable[[], list[str]]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Warned:
    """The messages that were logged since the last call; the program shows them."""

    def messages() -> list[str]:
        found = list(caplog.messages)
        caplog.clear()
        return found

    return messages


def finetune(model: Path, train: Path, out: Path, *more: str | Path, task: str) -> list[str | Path]:
    task_name = {"lm": "causal-lm", "classes": "sequence-classification"}[task]
    return [
        *("finetune", "--model", model, "--train", train, "--task", task_name, "--out", out),
        *("--method", "lora:r=2", "--lr", "1e-9", "--quiet", *more),
    ]


def metrics(out: Path) -> dict[str, object]:
    read = json.loads((out / "metrics.json").read_text())
    assert isinstance(read, dict)
    return read


# ---------- lengths ----------


def test_texts_are_cut_to_the_models_limit_and_counted(
    small_world: Path, tmp_path: Path, commands: Commands, warned: Warned
) -> None:
    rows: list[dict[str, object]] = [{"text": "good " * 60}, {"text": "a film"}]
    data, out = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "out"
    commands.ok(*finetune(small_world / "llama", data, out, "--eval", data, task="lm"))
    assert warned() == [f"{data}: 1 of 2 examples were cut to 48 tokens"] * 2
    job = metrics(out)["job"]
    assert isinstance(job, dict)
    assert (job["max_length"], job["truncated"]) == (48, {"train": 1, "eval": 1})

    evaluate = ("evaluate", "--model", small_world / "llama", "--data", data)
    told = commands.ok(*evaluate, "--max-length", "8", "--json").json
    assert (told["examples"], told["truncated"]) == (2, 1)
    assert warned() == [f"{data}: 1 of 2 examples were cut to 8 tokens"]
    assert "truncated" in commands.ok(*evaluate).out.split()


def test_texts_that_fit_are_not_told(
    small_world: Path, tmp_path: Path, commands: Commands, texts: Path, warned: Warned
) -> None:
    commands.ok(*finetune(small_world / "llama", texts, tmp_path / "out", task="lm"))
    assert warned() == []
    ran = commands.ok("evaluate", "--model", small_world / "llama", "--data", texts)
    assert "truncated" not in ran.out.split()


def test_virtual_tokens_leave_less_room_for_texts(
    small_world: Path, tmp_path: Path, commands: Commands, warned: Warned
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "good " * 60}, {"text": "a film"}])
    model, out = small_world / "llama", tmp_path / "out"
    prompt = ("--method", "prompt_tuning:num_virtual_tokens=8")
    commands.ok(
        "finetune",
        "--model",
        model,
        "--train",
        data,
        "--task",
        "causal-lm",
        *prompt,
        "--out",
        out,
        "--quiet",
    )
    assert warned() == [f"{data}: 1 of 2 examples were cut to 40 tokens"]
    commands.ok("evaluate", "--model", model, "--adapter", out, "--data", data)
    assert warned() == [f"{data}: 1 of 2 examples were cut to 40 tokens"]


def test_a_tokenizers_own_limit_counts_too(
    small_world: Path, tmp_path: Path, commands: Commands, texts: Path, warned: Warned
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    settings = model / "tokenizer_config.json"
    for length, told in ((3, 3), (10**30, 0), (0, 0)):
        settings.write_text(json.dumps({"eos_token": END, "model_max_length": length}))
        commands.ok("evaluate", "--model", model, "--data", texts)
        assert warned() == [f"{texts}: 3 of 3 examples were cut to 3 tokens"] * (told > 0)


# ---------- ends and padding ----------


def test_texts_end_with_the_token_of_the_generation_settings_if_no_other_is_named(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    (model / "tokenizer_config.json").write_text('{"eos_token": null}')
    [bare] = encode_causal([TextExample("a film")], load_tokenizer(model))
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')
    [ended] = encode_causal([TextExample("a film")], load_tokenizer(model))
    assert ended.input_ids == (*bare.input_ids, 1)
    [other] = encode_causal([TextExample("a film[PAD]")], load_tokenizer(model))
    assert other.input_ids == (*bare.input_ids, 0)  # it ends already, with the second of them


def test_a_padding_token_beyond_the_vocabulary_does_no_harm(
    small_world: Path, tmp_path: Path, commands: Commands, texts: Path
) -> None:
    model = copytree(small_world / "llama", tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    size = load_model(model).config.vocab_size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": size, "content": "[P]", "special": True, **flags})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    evaluate = ("evaluate", "--json", "--data", texts, "--model", model, "--batch-size")
    losses = []
    for pad in ("[P]", END, None):  # beyond the vocabulary; the token that also ends texts; none
        settings = {"eos_token": END, "pad_token": pad}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        assert load_tokenizer(model).pad_id == {"[P]": size, END: 1, None: None}[pad]
        losses += [commands.ok(*evaluate, size).json["loss"] for size in ("1", "2", "4")]
    assert np.ptp(np.array(losses, float)) < 1e-6
    commands.ok(*finetune(model, texts, tmp_path / "out", task="lm"))


# ---------- labels ----------


def labelled(path: Path, negative: object, positive: object) -> Path:
    spelling = {"neg": negative, "pos": positive}
    rows = [{**row, "label": spelling[str(row["label"])]} for row in reviews(8)]
    return write_jsonl(path, rows)


@pytest.mark.parametrize(
    ("names", "negative", "positive"),
    [
        (("neg", "pos"), "neg", "pos"),
        (("neg", "pos"), "NEG", "Pos"),
        (("neg", "pos"), 0, 1),
        (("neg", "pos"), "LABEL_0", "LABEL_1"),
        ((), 0, 1),
        ((), "LABEL_0", "LABEL_1"),
        (("pos", "neg"), "neg", "pos"),  # class 0 is the positive one
    ],
)
def test_a_trained_head_is_kept_where_the_labels_are_its_classes(
    tmp_path: Path, commands: Commands, names: tuple[str, ...], negative: object, positive: object
) -> None:
    config = replace(BERT, head="classification", num_labels=2, label_names=names)
    model, out = write_model(tmp_path / "model", config), tmp_path / "out"
    data = labelled(tmp_path / "data.jsonl", negative, positive)
    commands.ok(*finetune(model, data, out, "--eval", data, task="classes"))
    stored = load_file(out / "adapter_model.safetensors")
    [kept] = [tensor for name, tensor in stored.items() if name.endswith("classifier.weight")]
    own = load_file(model / "model.safetensors")["classifier.weight"]
    np.testing.assert_allclose(kept, own, atol=1e-6)
    job = metrics(out)["job"]
    assert isinstance(job, dict)
    assert job["labels"] == list(names or ("LABEL_0", "LABEL_1"))
    # The same accuracy as with the names themselves.
    evaluate = ("evaluate", "--json", "--model", model, "--data")
    plain = ("LABEL_0", "LABEL_1") if not names else ("neg", "pos")
    named = labelled(tmp_path / "named.jsonl", *plain)
    assert commands.ok(*evaluate, data).json == commands.ok(*evaluate, named).json


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_a_trained_head_keeps_its_pooling(
    small_world: Path, tmp_path: Path, commands: Commands, command: str
) -> None:
    model, out = small_world / "classifier", tmp_path / "out"
    data = labelled(tmp_path / "data.jsonl", "neg", "pos")
    told = commands.fails(
        *(command, "--model", model, "--train", data, "--eval", data, "--out", out, "--quiet"),
        *("--task", "sequence-classification", "--method", "lora:r=2", "--pooling", "mean"),
    )
    assert f"--pooling is for a new head, and {model} has one (--new-head makes one)" in told


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_labels_of_other_classes_ask_for_a_new_head(
    small_world: Path, tmp_path: Path, commands: Commands, command: str
) -> None:
    model, out = small_world / "classifier", tmp_path / "out"
    data = labelled(tmp_path / "data.jsonl", "dull", "fun")
    arguments = (
        *(command, "--model", model, "--train", data, "--eval", data, "--out", out, "--quiet"),
        *("--task", "sequence-classification", "--method", "lora:r=2"),
    )
    assert commands.fails(*arguments) == (
        f"tinygrad-peft: {data}: expected labels of the head of {model}, 'neg', 'pos', got 'dull', "
        "'fun': --new-head trains a new head for them\n"
    )
    assert not out.exists()
    commands.ok(*arguments, "--new-head")
    if command == "finetune":
        evaluate = ("evaluate", "--model", model, "--adapter", out, "--data")
        assert commands.ok(*evaluate, data, "--json").json["examples"] == 8
        own = labelled(tmp_path / "own.jsonl", "neg", "pos")
        assert "unknown labels (expected one of 'dull', 'fun')" in commands.fails(*evaluate, own)


def test_a_new_head_replaces_one_whose_classes_have_the_same_names(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model, out = small_world / "classifier", tmp_path / "out"
    data = small_world / "reviews.jsonl"
    commands.ok(*finetune(model, data, out, "--new-head", task="classes"))
    stored = load_file(out / "adapter_model.safetensors")
    [made] = [tensor for name, tensor in stored.items() if name.endswith("classifier.weight")]
    assert np.abs(made - load_file(model / "model.safetensors")["classifier.weight"]).max() > 0.01


def test_data_with_some_of_the_classes_keeps_the_head(
    tmp_path: Path, commands: Commands, warned: Warned
) -> None:
    config = replace(BERT, head="classification", num_labels=3, label_names=("a", "neg", "pos"))
    model = write_model(tmp_path / "model", config)
    data = labelled(tmp_path / "data.jsonl", "neg", "pos")
    commands.ok(*finetune(model, data, tmp_path / "out", task="classes"))
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert [t.shape[0] for name, t in stored.items() if name.endswith("classifier.weight")] == [3]
    numbers = labelled(tmp_path / "numbers.jsonl", 1, 2)
    commands.ok("evaluate", "--model", model, "--data", numbers)
    assert warned() == [f"{numbers}: labels are read: '1' as 'neg', '2' as 'pos'"]


@pytest.mark.parametrize("length", ["0", "-1"])
def test_a_limit_without_room_for_a_token_is_refused(
    small_world: Path, commands: Commands, length: str
) -> None:
    given = ("--model", small_world / "classifier", "--data", small_world / "reviews.jsonl")
    message = commands.fails("evaluate", *given, "--max-length", length)
    assert message == f"tinygrad-peft: --max-length: expected at least 1, got {length}\n"
