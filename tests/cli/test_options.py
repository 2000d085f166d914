"""Options that several commands share."""

from typing import get_args, get_type_hints

import click
import pytest

from tests.cli.toys import Commands
from tinygrad_peft.cli.app import cli
from tinygrad_peft.models import SaveDtype
from tinygrad_peft.nn import Generation
from tinygrad_peft.peft import CombinationType
from tinygrad_peft.train import TrainConfig


def option(command: str, name: str) -> click.Parameter:
    (found,) = [option for option in cli.commands[command].params if option.name == name]
    return found


def choices(option: click.Parameter) -> tuple[object, ...]:
    assert isinstance(option.type, click.Choice)
    return tuple(option.type.choices)


@pytest.mark.parametrize("command", ["finetune", "compare"])
@pytest.mark.parametrize("name", ["schedule", "optimizer"])
def test_choices_of_training_are_the_settings(command: str, name: str) -> None:
    assert choices(option(command, name)) == get_args(get_type_hints(TrainConfig)[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("epochs", click.INT), ("max_steps", click.INT), ("lr", click.FLOAT), ("warmup", click.FLOAT)],
)
def test_types_of_training_are_the_settings(name: str, kind: click.ParamType[object]) -> None:
    assert option("finetune", name).type is kind


def test_choices_of_the_library_are_offered() -> None:
    assert choices(option("merge", "dtype")) == get_args(SaveDtype)
    assert choices(option("combine", "combination_type")) == get_args(CombinationType)


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed"])
def test_defaults_of_generation_are_the_settings(name: str) -> None:
    assert option("generate", name).default == getattr(Generation, name)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("plot", ""), "FOLDER"),
        (("inspect", ""), "PATH"),
        (("inspect", "x", "--model", ""), "--model"),
        (("evaluate", "--model", ""), "--model"),
        (("evaluate", "--model", "x", "--adapter", ""), "--adapter"),
        (("evaluate", "--model", "x", "--data", ""), "--data"),
        (("finetune", "--model", "x", "--train", ""), "--train"),
        (("finetune", "--model", "x", "--train", "x", "--eval", ""), "--eval"),
        (("count", "--config", ""), "--config"),
        (("combine", "--adapter", ""), "--adapter"),
        (("--without", "", "methods"), "--without"),
    ],
)
def test_empty_path_or_name_is_refused(
    commands: Commands, arguments: tuple[str, ...], name: str
) -> None:
    message = commands.fails(*arguments)
    assert f"Invalid value for '{name}': expected a path or a name, got ''" in message
