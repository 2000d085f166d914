"""compare and plot: what they train, write and say."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.commands.test_finetune import tree, wait_for
from tests.cli.toys import Commands, reviews, write_jsonl
from tinygrad_peft.train.comparison_result import read_comparison

PLOT = {"comparison.png"} if find_spec("matplotlib") else set[str]()
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
RUN = {"recipe.json", "metrics.json", "log.jsonl"}


NEEDED = "matplotlib is not installed: pip install 'tinygrad-peft[plot]'"


def compare(world: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments that compare recipes for the encoder on the reviews."""
    return [
        *("compare", "--model", world / "bert", "--train", world / "reviews.jsonl"),
        *("--eval", world / "more-reviews.jsonl", "--batch-size", "8", "--out", out, *more),
    ]


def methods(*specs: str) -> list[str]:
    return [text for spec in specs for text in ("--method", spec)]


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell]


# ---------- what it gives ----------


def test_each_recipe_has_a_row_and_a_folder(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    more = methods("lora:r=4", "lora:r=2 + ia3:target_modules=key @ lr=3e-3, label=two")
    ran = commands.ok(*compare(small_world, out, *more, "--baseline", "--epochs", "2"))
    header, probe, lora, two, *rest = ran.out.splitlines()
    assert header.split("  ")[-1].strip() == "learning rate"
    assert [line.split("  ")[0].strip() for line in (probe, lora, two)] == [
        "frozen probe",
        "lora",
        "two",
    ]
    assert [line.split()[-1] for line in (probe, lora, two)] == ["–", "0.001", "0.003"]
    assert rest[-1] == f"written: comparison.json, comparison.png and the adapters in {out}" or (
        not PLOT and rest[-1].startswith("written: comparison.json and")
    )
    one = {f"2-lora/{name}" for name in ADAPTER | RUN}
    both = {f"3-two/{step}/{name}" for step in ("0-lora", "1-ia3") for name in ADAPTER}
    assert tree(out) == {"comparison.json", *PLOT, *one, *both, *(f"3-two/{f}" for f in RUN)}


def test_the_rows_are_what_finetune_and_evaluate_say(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    shared = ("--epochs", "2", "--batch-size", "8", "--seed", "3", "--json")
    more = methods("ia3:target_modules=key", "lora:r=4,lora_dropout=0.1")
    told = commands.ok(*compare(small_world, tmp_path / "out", *more, *shared)).json
    rows = told["rows"]
    assert isinstance(rows, list)
    model = ("--model", small_world / "bert")
    data = ("--train", small_world / "reviews.jsonl", "--eval", small_world / "more-reviews.jsonl")
    alone = commands.ok(
        *("finetune", *model, *data, "--task", "sequence-classification", *shared),
        *("--method", "lora:r=4,lora_dropout=0.1", "--out", tmp_path / "alone"),
    ).json
    assert rows[1]["accuracy"] == alone["eval_accuracy"]
    assert rows[1]["loss"] == alone["eval_loss"]
    assert (rows[1]["trainable"], rows[1]["total"]) == (alone["trainable"], alone["total"])
    one, other = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "alone", tmp_path / "out" / "2-lora")
    )
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}
    adapter = ("--adapter", tmp_path / "out" / "2-lora", "--batch-size", "8")
    again = commands.ok(
        "evaluate", *model, *adapter, "--data", small_world / "more-reviews.jsonl", "--json"
    ).json
    assert again["loss"] == rows[1]["loss"]


def test_json_is_the_whole_comparison(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    ran = commands.ok(*compare(small_world, out, *methods("lora:r=4"), "--json"))
    assert ran.err == ""
    told = ran.json
    assert told.pop("out") == str(out)
    assert told.pop("plot") == (str(out / "comparison.png") if PLOT else None)
    assert told == json.loads((out / "comparison.json").read_bytes())
    job = told["job"]
    assert isinstance(job, dict)
    assert job["task"] == "sequence-classification"  # which nobody said
    assert job["model"] == str(small_world / "bert")
    assert "lr" not in json.dumps(told["config"])
    metrics = json.loads((out / "1-lora" / "metrics.json").read_bytes())
    assert (metrics["job"]["label"], metrics["rates"]) == ("lora", [0.001])


def test_language_models_are_compared_by_their_loss(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    ran = commands.ok(
        *("compare", "--model", small_world / "llama", "--out", tmp_path / "out", "--lr", "0.01"),
        *("--train", small_world / "definitions.jsonl", "--batch-size", "8", "--epochs", "3"),
        *("--eval", small_world / "more-definitions.jsonl", "--baseline", "--quiet"),
        *methods("lora:r=4", "lora:r=2 @ lr=3e-3"),
    )
    assert ran.err == ""
    header, base, four, two, *_ = (cells(line) for line in ran.out.splitlines())
    assert header[0].strip() == "loss"
    assert [row[0].strip() for row in (base, four, two)] == [
        "frozen model",
        "lora r=4",
        "lora r=2",
    ]
    assert float(four[1]) < float(base[1])


def test_people_see_whose_turn_it_is(small_world: Path, tmp_path: Path, commands: Commands) -> None:
    more = methods("lora:r=4", "lora:r=2")
    lines = commands.ok(*compare(small_world, tmp_path / "out", *more)).err.splitlines()
    assert lines[0] == "1/2 lora r=4"
    assert lines[1].startswith("step 6/6: loss ")
    assert lines[2].endswith(f"; the weights are in {tmp_path / 'out' / '1-lora-r-4'}")
    assert lines[3] == "2/2 lora r=2"


# ---------- what is wrong is told before anything is written ----------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (methods("lorra"), "no method is called 'lorra'; did you mean 'lora'"),
        (methods("lora", "lora"), "two recipes are called 'lora'"),
        (methods("lora @ lr=-1"), "lora: invalid TrainConfig"),
        (methods("lora", "lora:target_modules=qery"), "'qery' matches no module"),
        ([*methods("lora"), "--epochs", "0"], "epochs: expected at least 1, got 0"),
        ([*methods("lora"), "--eval", "nowhere.jsonl"], "nowhere.jsonl: no such data file"),
        ([*methods("lora"), "--model", "nowhere"], "nowhere: no such model"),
        (["--baseline"], "Missing option '--method'"),
    ],
)
def test_what_cannot_be_compared_is_told(
    small_world: Path, tmp_path: Path, commands: Commands, more: Sequence[str], told: str
) -> None:
    assert told in commands.fails(*compare(small_world, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_the_evaluation_data_must_be_named(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = compare(small_world, tmp_path / "out", *methods("lora"))
    place = arguments.index("--eval")
    message = commands.fails(*arguments[:place], *arguments[place + 2 :])
    assert "Missing option '--eval'" in message


def test_a_folder_with_somebodys_work_is_refused(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = compare(small_world, tmp_path, *methods("lora"), "--quiet")
    commands.ok(*arguments)
    message = commands.fails(*arguments)
    assert f"--out {tmp_path}: there is a comparison in it (comparison.json)" in message
    (tmp_path / "file").touch()
    message = commands.fails(*arguments, "--out", tmp_path / "file")
    assert "file is a file, expected a folder" in message


def test_a_task_that_the_data_is_not_for_is_told(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"words": "good"}])
    message = commands.fails(
        *compare(small_world, tmp_path / "out", *methods("lora"), "--train", data)
    )
    assert f"{data} cannot be used for causal-lm" in message


# ---------- recipes that end before their time ----------


def test_a_recipe_that_fails_does_not_lose_the_others(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    ran = commands(
        *("compare", "--model", small_world / "gpt2", "--out", out, "--batch-size", "4"),
        *("--train", small_world / "definitions.jsonl", "--epochs", "3"),
        *("--eval", small_world / "more-definitions.jsonl"),
        *methods("lora:r=4 @ lr=1e30,label=wild", "lora:r=4 @ label=calm"),
    )
    assert ran.status == 2
    _, wild, calm, why, *_ = ran.out.splitlines()
    assert wild.startswith("wild (failed)")
    assert calm.startswith("calm  ")
    assert why.startswith("wild failed: training stopped in epoch 1")
    assert "failed: training stopped in epoch 1" in ran.err
    assert (out / "2-calm" / "recipe.json").exists()
    if PLOT:
        assert (out / "comparison.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_keeps_what_is_done(small_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = compare(small_world, out, *methods("lora:r=2", "lora:r=4", "ia3"), "--baseline")
    arguments += methods("lora:r=8,target_modules=all-linear @ label=last")
    arguments += ["--epochs", "30"]
    arguments[arguments.index("ia3")] = "ia3:target_modules=key"
    long = write_jsonl(tmp_path / "long.jsonl", reviews(2000))
    arguments[arguments.index("--train") + 1] = long
    command = [sys.executable, "-m", "tinygrad_peft", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            wait_for((out / "2-lora-r-2" / "recipe.json").exists)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    comparison = read_comparison(out / "comparison.json")
    assert [row.outcome for row in comparison.rows] == ["finished", "interrupted"]
    assert comparison.waiting == ("lora r=4", "ia3", "last")
    assert "not tried: lora r=4, ia3, last" in output.splitlines()
    assert (out / "2-lora-r-2" / "interrupted" / "recipe.json").exists()
