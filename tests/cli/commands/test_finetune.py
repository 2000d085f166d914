"""finetune: training, files and output."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.toys import (
    LABELS,
    WORDS,
    Commands,
    reviews,
    word_tokenizer,
    write_csv,
    write_jsonl,
    write_tokenizer,
)
from tinygrad_peft_lora import LoraConfig

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "recipe.json",
    "metrics.json",
    "log.jsonl",
}


def classify(world: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments that fine-tune the encoder on the reviews."""
    return [
        *("finetune", "--model", world / "bert", "--task", "sequence-classification"),
        *("--train", world / "reviews.jsonl", "--method", "lora:r=4", "--batch-size", "8"),
        *("--lr", "0.003", "--out", out, *more),
    ]


def complete(world: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments that fine-tune a language model on the definitions."""
    return [
        *("finetune", "--model", world / "llama", "--task", "causal-lm", "--out", out),
        *("--train", world / "definitions.jsonl", "--method", "lora:r=4", "--batch-size", "8"),
        *("--lr", "0.01", *more),
    ]


def tree(folder: Path) -> set[str]:
    """All files below a folder, hidden ones too."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def events(out: Path) -> list[dict[str, object]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# ---------- training ----------


def test_a_classifier_learns_and_leaves_its_files(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    evaluation = small_world / "more-reviews.jsonl"
    ran = commands.ok(*classify(small_world, out, "--eval", evaluation, "--epochs", "8", "--json"))
    assert ran.err == ""
    assert tree(out) == FILES
    told = ran.json
    assert (told["outcome"], told["steps"], told["out"]) == ("finished", 48, str(out))
    assert told["eval_accuracy"] == 15 / 16
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert metrics["best"]["accuracy"] == told["eval_accuracy"]
    assert metrics["job"]["labels"] == list(LABELS)
    assert [e["event"] for e in events(out)].count("step_ended") == 48


def test_a_language_model_learns(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    out = tmp_path / "out"
    evaluation = small_world / "more-definitions.jsonl"
    more = ("--eval", evaluation, "--epochs", "10", "--eval-every", "3", "--json")
    told = commands.ok(*complete(small_world, out, *more)).json
    evaluated = [e for e in events(out) if e["event"] == "evaluated"]
    assert [e["step"] for e in evaluated] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    losses = [e["loss"] for e in evaluated]
    assert isinstance(losses[0], float)
    assert told["eval_loss"] == min(map(float, map(str, losses))) < losses[0] - 0.2
    assert told["eval_accuracy"] is None


def test_two_equal_runs_are_equal_bit_for_bit(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    def adapter(name: str, seed: str) -> bytes:
        more = ("--method", "lora:r=2,lora_dropout=0.1,target_modules=all-linear")
        commands.ok(*classify(small_world, tmp_path / name, *more, "--seed", seed, "--quiet"))
        steps = [tmp_path / name / step / "adapter_model.safetensors" for step in STEPS]
        return b"".join(path.read_bytes() for path in steps)

    assert adapter("one", "3") == adapter("two", "3") != adapter("three", "4")


STEPS = ("0-lora", "1-lora")


def test_methods_are_applied_in_the_order_that_they_are_given(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    commands.ok(*classify(small_world, out, "--method", "lora:r=2,target_modules=dense"))
    assert json.loads((out / "recipe.json").read_bytes())["steps"] == list(STEPS)
    ranks = [json.loads((out / s / "adapter_config.json").read_bytes())["r"] for s in STEPS]
    assert ranks == [4, 2]
    assert json.loads((out / "metrics.json").read_bytes())["job"]["methods"] == [
        "lora:r=4",
        "lora:r=2,target_modules=dense",
    ]


def test_csv_and_json_lines_train_alike(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_csv(tmp_path / "reviews.csv", reviews(48))
    losses = [
        commands.ok(*classify(small_world, tmp_path / name, "--json", "--train", file)).json["loss"]
        for name, file in {"one": small_world / "reviews.jsonl", "two": data}.items()
    ]
    assert losses[0] == losses[1]


def test_settings_reach_the_training(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    out = tmp_path / "out"
    told = commands.ok(
        *classify(small_world, out, "--optimizer", "sgd", "--schedule", "cosine"),
        *("--accumulation", "2", "--max-steps", "3", "--weight-decay", "0.1", "--epochs", "2"),
        *("--label-smoothing", "0.1", "--max-grad-norm", "0", "--pooling", "cls", "--json"),
    ).json
    assert (told["steps"], told["eval_loss"]) == (3, None)
    config = json.loads((out / "metrics.json").read_bytes())["config"]
    given = {"optimizer": "sgd", "schedule": "cosine", "accumulation": 2, "max_steps": 3}
    given |= {"weight_decay": 0.1, "label_smoothing": 0.1, "max_grad_norm": None, "epochs": 2}
    assert {name: config[name] for name in given} == given
    assert json.loads((out / "recipe.json").read_bytes())["base"]["pooling"] == "cls"


@pytest.mark.parametrize("option", [("--new-head",), ("--pooling", "cls")])
def test_language_models_get_no_new_head(
    small_world: Path, tmp_path: Path, commands: Commands, option: tuple[str, ...]
) -> None:
    message = commands.fails(
        *complete(small_world, tmp_path / "out", "--method", "lora:r=2", *option)
    )
    assert "--pooling and --new-head are for --task sequence-classification" in message


def test_default_rate_is_the_methods_own(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    def rate(name: str, *more: str) -> object:
        arguments = classify(small_world, tmp_path / name, "--max-steps", "1", "--quiet", *more)
        if not more:
            place = arguments.index("--lr")
            del arguments[place : place + 2]
        commands.ok(*arguments)
        return json.loads((tmp_path / name / "metrics.json").read_bytes())["rates"]

    assert rate("own") == [LoraConfig.learning_rate]
    assert rate("given", "--lr", "0.5") == [0.5]


def test_accumulation_makes_one_step_of_several_batches(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    told = commands.ok(
        *classify(small_world, tmp_path / "out", "--accumulation", "2", "--json")
    ).json
    assert told["steps"] == 3  # 48 examples, 8 in a batch


def test_output_for_people_is_the_evaluations_and_a_table(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out, evaluation = tmp_path / "out", small_world / "more-reviews.jsonl"
    ran = commands.ok(*classify(small_world, out, "--eval", evaluation))
    assert ran.err.startswith("step 6/6: loss ")
    rows = [line.split("  ", maxsplit=1) for line in ran.out.splitlines()]
    table = {name.strip(): value.strip() for name, value in rows}
    assert table["saved in"] == str(out)
    assert table["trainable"] == "546 of 6,372 (8.569 %)"
    quiet = commands.ok(*classify(small_world, tmp_path / "quiet", "--quiet"))
    assert quiet.err == ""


# ---------- errors before anything is written ----------


def test_texts_longer_than_the_models_positions_are_refused_before_training(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    rows: list[dict[str, object]] = [*reviews(4), {"text": "good " * 200, "label": "pos"}]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    long = classify(small_world, tmp_path / "out", "--train", data, "--max-length", "128")
    message = commands.fails(*long)
    assert message == (
        f"tinygrad-peft: {data}: 1 of 5 examples have more tokens than the model's 48 positions: "
        "use --max-length 48\n"
    )
    assert not (tmp_path / "out").exists()
    commands.ok(*classify(small_world, tmp_path / "out", "--train", data, "--max-length", "48"))


def test_tokenizer_of_another_model_is_refused_before_training(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = copytree(small_world / "bert", tmp_path / "model")
    write_tokenizer(model, word_tokenizer([*(f"word{i}" for i in range(30)), *WORDS]))
    message = commands.fails(*classify(small_world, tmp_path / "out", "--model", model))
    assert "the tokenizer gives token 44, and the model has 15 tokens (0..14)" in message
    assert "the tokenizer (45 tokens) belongs to another model" in message
    assert not (tmp_path / "out").exists()


def test_labels_that_only_the_evaluation_has_are_refused_with_their_file(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "eval.jsonl", [*reviews(4), {"text": "good", "label": "poss"}])
    message = commands.fails(*classify(small_world, tmp_path / "out", "--eval", data))
    assert message.splitlines() == [
        f"tinygrad-peft: {data}: unknown labels (expected one of 'neg', 'pos'):",
        "  - 'poss' in 1 of 5 examples; did you mean 'pos'?",
    ]
    assert not (tmp_path / "out").exists()


def test_data_with_one_label_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "one.jsonl", [{"text": "good", "label": "pos"}])
    message = commands.fails(*classify(small_world, tmp_path / "out", "--train", data))
    assert f"{data}: every example has the label 'pos', expected two or more" in message


def test_encoder_does_not_train_as_a_language_model(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    model = small_world / "bert"
    message = commands.fails(*complete(small_world, tmp_path / "out", "--model", model))
    assert f"{model} has no language-model head, which --task causal-lm needs" in message
    assert "--task sequence-classification" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "a model"),
        ("adapter_config.json", "an adapter"),
        ("recipe.json", "an adapter"),
    ],
)
def test_earlier_work_is_not_overwritten(
    small_world: Path, tmp_path: Path, commands: Commands, file: str, what: str
) -> None:
    (tmp_path / file).write_text("{}", encoding="utf-8")
    message = commands.fails(*classify(small_world, tmp_path))
    assert f"--out {tmp_path}: there is {what} in it ({file}): name another folder" in message
    assert tree(tmp_path) == {file}


def test_file_in_place_of_the_folder_is_refused_before_the_model_is_read(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        message = commands.fails(*classify(small_world, out, "--model", "nowhere"))
        assert message == f"tinygrad-peft: --out {out}: {file} is a file, expected a folder\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_the_right_to_write_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    tmp_path.chmod(0o500)
    message = commands.fails(*classify(small_world, tmp_path / "out"))
    assert f"no right to write in {tmp_path}" in message


def edited(model: Path, to: Path, how: str) -> Path:
    """A copy of a model with something wrong."""
    folder = copytree(model, to)
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "of integers":
        tensors = load_file(weights)
        tensors["embeddings.LayerNorm.bias"] = np.zeros(16, np.int32)
        save_file(tensors, weights)
    elif how == "of an unknown model_type":
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))
    else:
        (folder / how.removeprefix("without ")).unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("without config.json", "config.json does not exist"),
        ("without model.safetensors", "holds neither model.safetensors nor"),
        ("without tokenizer.json", "expected a file tokenizer.json"),
        ("truncated", "model.safetensors is truncated or not a safetensors file"),
        ("of integers", "wrong dtype: embeddings.LayerNorm.bias is I32, expected one of F64, F32"),
        (
            "of an unknown model_type",
            "unknown model_type 'bart', expected one of gpt2, llama, bert",
        ),
    ],
)
def test_broken_model_is_refused_with_its_path(
    small_world: Path, tmp_path: Path, commands: Commands, how: str, told: str
) -> None:
    model = edited(small_world / "bert", tmp_path / "model", how)
    message = commands.fails(*classify(small_world, tmp_path / "out", "--model", model))
    assert message.startswith("tinygrad-peft: ")
    assert str(model) in message
    assert told in message
    assert not (tmp_path / "out").exists()


def test_config_without_weights_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    config = small_world / "bert" / "config.json"
    message = commands.fails(*classify(small_world, tmp_path / "out", "--model", config))
    assert f"{config}" in message
    assert "expected a folder or a .gguf file" in message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + bytes(16)])
def test_broken_gguf_file_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands, content: bytes
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(content)
    message = commands.fails(*complete(small_world, tmp_path / "out", "--model", model))
    assert str(model) in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no examples: expected at least one"),
        ('{"text": "good film"}\n', "line 1: expected 'text' and 'label', got 'text'"),
        ("good film\n", "line 1: not a JSON object"),
        ('{"text": " ", "label": "pos"}\n', "line 1: 'text' is empty"),
    ],
)
@pytest.mark.parametrize("option", ["--train", "--eval"])
def test_unusable_data_is_refused_with_its_path(
    small_world: Path, tmp_path: Path, commands: Commands, option: str, content: str, told: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content, encoding="utf-8")
    message = commands.fails(*classify(small_world, tmp_path / "out", option, data))
    assert message.startswith(f"tinygrad-peft: {data}")
    assert told in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (["lora:target_modules=qery"], "'qery' matches no module; did you mean 'query'"),
        (["lora:target_modules=query+valeu"], "'valeu' matches no module; did you mean 'value'"),
        (["lora", "lora:target_modules=denze"], "step 2: 'denze' matches no module"),
    ],
)
def test_targets_that_match_nothing_are_refused_with_the_nearest(
    small_world: Path, tmp_path: Path, commands: Commands, methods: list[str], told: str
) -> None:
    arguments = [text for method in methods for text in ("--method", method)]
    message = commands.fails(*classify(small_world, tmp_path / "out", *arguments))
    assert told in message
    assert not (tmp_path / "out").exists()


def test_all_invalid_settings_are_reported_at_once(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    settings = ("--epochs", "0", "--lr", "nan", "--warmup", "1", "--max-steps", "0")
    message = commands.fails(*classify(small_world, tmp_path / "out", *settings))
    for name in ("epochs", "lr", "warmup", "max_steps"):
        assert f"  - {name}: expected " in message


# ---------- runs that end before their time ----------


@pytest.mark.parametrize("evaluation", [True, False])
def test_a_run_that_diverges_stops_and_keeps_its_last_good_weights(
    small_world: Path, tmp_path: Path, commands: Commands, *, evaluation: bool
) -> None:
    more: list[str | Path] = ["--model", small_world / "gpt2", "--lr", "1e30", "--epochs", "3"]
    more += ["--batch-size", "4"]
    if evaluation:
        more += ["--eval", small_world / "more-definitions.jsonl", "--eval-every", "1"]
    message = commands.fails(*complete(small_world, tmp_path / "out", "--quiet", *more))
    assert message.startswith("tinygrad-peft: training stopped")
    if evaluation:
        assert f"of step 1, is kept in {tmp_path / 'out'}" in message
        kept = ("--adapter", tmp_path / "out", "--data", small_world / "definitions.jsonl")
        commands.ok("evaluate", "--model", small_world / "gpt2", *kept, "--json")
        assert tree(tmp_path / "out") == FILES - {"metrics.json"}
    else:
        assert " in epoch 1, batch 3: the loss is nan (step 3, learning rate 1e+30)" in message
        assert "nothing was saved" in message
        assert tree(tmp_path / "out") == {"log.jsonl"}
    assert events(tmp_path / "out")[-1]["outcome"] == "diverged"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_and_says_where(small_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = classify(small_world, out, "--epochs", "100000", "--eval-every", "10")
    command = [sys.executable, "-m", "tinygrad_peft", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            wait_for((out / "recipe.json").exists)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"the weights are in {out / 'interrupted'}" in errors
    assert output.splitlines()[0].split() == ["outcome", "interrupted"]
    assert output.splitlines()[-1].split() == ["saved", "in", str(out / "interrupted")]
    adapter = FILES - {"metrics.json", "log.jsonl"}
    resumable = {name for name in tree(out) if name.startswith("checkpoints/step-")}
    assert len(resumable) == 2
    assert tree(out) == FILES | {f"interrupted/{name}" for name in adapter} | resumable
    assert json.loads((out / "metrics.json").read_bytes())["outcome"] == "interrupted"


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within a minute")
