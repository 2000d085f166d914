"""Models with their adapters, as commands name them."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.toys import Commands, reviews, write_jsonl, write_model
from tests.peft.small import BERT


@pytest.fixture(scope="module")
def adapter(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the encoder, with a classification head."""
    from tinygrad_peft.cli.app import run

    out = tmp_path_factory.mktemp("adapters") / "reviews"
    train = ("--train", str(small_world / "reviews.jsonl"), "--quiet")
    task = ("--task", "sequence-classification", "--method", "lora:r=4")
    model = ("--model", str(small_world / "bert"))
    assert run(["finetune", *model, *train, *task, "--out", str(out)]) == 0
    return out


def test_head_with_other_labels_than_the_model_is_restored(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    rows = [
        {**row, "label": f"{row['label']}-{place % 3}"} for place, row in enumerate(reviews(24))
    ]
    data = write_jsonl(tmp_path / "six.jsonl", rows)
    arguments = ("--model", small_world / "classifier", "--batch-size", "8", "--json")
    told = commands.ok(
        *("finetune", "--train", data, "--eval", data, "--task", "sequence-classification"),
        *("--method", "lora:r=4", "--epochs", "3", "--out", tmp_path / "out", *arguments),
        "--new-head",
    ).json
    seen = commands.ok("evaluate", "--data", data, "--adapter", tmp_path / "out", *arguments).json
    assert (seen["loss"], seen["accuracy"]) == (told["eval_loss"], told["eval_accuracy"])


@pytest.mark.filterwarnings("default::tinygrad_peft.errors.BaseModelWarning")
def test_a_base_of_another_name_is_a_warning_in_one_line(
    small_world: Path, adapter: Path, tmp_path: Path, commands: Commands
) -> None:
    other = copytree(small_world / "bert", tmp_path / "other")
    data = ("--data", small_world / "more-reviews.jsonl")
    told = commands.ok("evaluate", "--model", other, "--adapter", adapter, *data).err
    trained_on = f"'{small_world / 'bert'}'"
    assert told == (
        f"tinygrad-peft: warning: {adapter} was trained on {trained_on}, and this is '{other}'\n"
    )


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_adapter_of_another_family_is_refused_in_one_line(
    small_world: Path, adapter: Path, commands: Commands, model: str
) -> None:
    arguments = ("--model", small_world / model, "--adapter", adapter)
    message = commands.fails("generate", *arguments, "--prompt", "the film")
    expected = f"{adapter} was made for another model: model_type: expected 'bert', got '{model}'"
    assert message.startswith(f"tinygrad-peft: {expected}")
    assert len(message.splitlines()) == 1


def test_adapter_of_another_model_is_refused_even_where_its_tensors_fit(
    small_world: Path, adapter: Path, tmp_path: Path, commands: Commands
) -> None:
    model = write_model(
        tmp_path / "model", replace(BERT, num_attention_heads=4, num_key_value_heads=4, head_dim=4)
    )
    message = commands.fails(
        *("evaluate", "--model", model, "--adapter", adapter),
        *("--data", small_world / "reviews.jsonl"),
    )
    expected = f"{adapter} was made for another model: num_attention_heads: expected 2, got 4"
    assert message == f"tinygrad-peft: {expected}\n"


def broken(adapter: Path, to: Path, how: str) -> Path:
    folder = copytree(adapter, to)
    weights = folder / "adapter_model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "without weights":
        weights.unlink()
    elif how == "not JSON":
        (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    elif how == "of an unknown method":
        config = json.loads((folder / "adapter_config.json").read_bytes())
        config["peft_type"] = "LOHA"
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    else:
        for file in folder.iterdir():
            file.unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", "adapter_model.safetensors is truncated or not a safetensors file"),
        ("without weights", "adapter_model.safetensors does not exist"),
        ("not JSON", "adapter_config.json is not JSON: "),
        ("of an unknown method", "no installed plugin provides the method 'loha'"),
        ("empty", "expected recipe.json or adapter_config.json, got neither"),
    ],
)
def test_broken_adapter_is_refused_with_its_path(
    small_world: Path, adapter: Path, tmp_path: Path, commands: Commands, how: str, told: str
) -> None:
    folder = broken(adapter, tmp_path / "adapter", how)
    arguments = ("--model", small_world / "bert", "--adapter", folder)
    for command in (
        ("evaluate", "--data", small_world / "reviews.jsonl"),
        ("generate", "--prompt", "the film"),
        ("merge", "--out", tmp_path / "merged"),
    ):
        message = commands.fails(*command, *arguments)
        assert message.startswith(f"tinygrad-peft: {folder}")
        assert told in message
    assert not (tmp_path / "merged").exists()


def test_missing_adapter_is_refused(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    arguments = ("--model", small_world / "bert", "--adapter", tmp_path / "nowhere")
    message = commands.fails("evaluate", *arguments, "--data", small_world / "reviews.jsonl")
    assert message == f"tinygrad-peft: {tmp_path / 'nowhere'}: no such folder\n"


def test_a_bare_encoder_has_nothing_to_evaluate(small_world: Path, commands: Commands) -> None:
    arguments = ("--model", small_world / "bert", "--data", small_world / "reviews.jsonl")
    message = commands.fails("evaluate", *arguments)
    assert "a bare encoder has nothing to evaluate: name the --adapter with its head" in message


# ---------- heads ----------


def test_an_adapter_without_a_recipe_gives_the_bare_model_its_head(
    small_world: Path, adapter: Path, tmp_path: Path, commands: Commands
) -> None:
    from tinygrad_peft.models import load_config

    numbered = [{**row, "label": int(row["label"] == "pos")} for row in reviews(16)]
    data = ("--data", write_jsonl(tmp_path / "data.jsonl", numbered), "--json")
    on_base = ("--model", small_world / "bert", "--adapter")
    named = ("--data", write_jsonl(tmp_path / "named.jsonl", reviews(16)), "--json")
    expected = commands.ok("evaluate", *on_base, adapter, *named).json
    folder = copytree(adapter, tmp_path / "adapter")
    (folder / "recipe.json").unlink()  # as Hugging Face PEFT writes it
    assert commands.ok("inspect", folder, "--model", small_world / "bert", "--json").json["sound"]
    commands.ok("merge", *on_base, folder, "--out", tmp_path / "merged")
    seen = commands.ok("evaluate", "--model", tmp_path / "merged", *data).json
    assert seen["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert load_config(tmp_path / "merged").is_usual_classifier


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_head_is_written_under_the_class_that_computes_it(
    small_world: Path, tmp_path: Path, commands: Commands, model: str, pooling: str | None
) -> None:
    data = small_world / "reviews.jsonl"
    on_base = ("--model", small_world / model)
    commands.ok(
        *("finetune", *on_base, "--train", data, "--task", "sequence-classification"),
        *("--method", "lora:r=2", "--max-steps", "2", "--out", tmp_path / "adapter"),
        *([] if pooling is None else ["--pooling", pooling]),
    )
    evaluate = ("evaluate", "--data", data, "--json")
    expected = commands.ok(*evaluate, *on_base, "--adapter", tmp_path / "adapter").json
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert settings["task_type"] == ("FEATURE_EXTRACTION" if pooling else "SEQ_CLS")
    merging = ("--adapter", tmp_path / "adapter", "--out", tmp_path / "merged")
    commands.ok("merge", *on_base, *merging)
    config = json.loads((tmp_path / "merged" / "config.json").read_bytes())
    (name,) = config["architectures"]
    assert name.endswith("Model" if pooling else "ForSequenceClassification")
    assert (tmp_path / "merged" / "modules.json").is_file() == (pooling is not None)
    seen = commands.ok(*evaluate, "--model", tmp_path / "merged").json
    assert seen["loss"] == pytest.approx(expected["loss"], rel=1e-4)
