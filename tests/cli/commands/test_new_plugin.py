"""new-plugin: a distribution to start from."""

from pathlib import Path

import click

from tests.cli.toys import Commands
from tinygrad_peft.cli.commands.new_plugin import new_plugin
from tinygrad_peft.kit import KINDS


def test_new_plugin_writes_a_distribution(commands: Commands, tmp_path: Path) -> None:
    found = commands.ok("new-plugin", "mild_shift", "--kind", "prompt", "--out", tmp_path, "--json")
    folder = tmp_path / "tinygrad-peft-mild-shift"
    method = folder / "tinygrad_peft_mild_shift" / "__init__.py"
    assert found.json == {
        "name": "mild_shift",
        "kind": "prompt",
        "distribution": "tinygrad-peft-mild-shift",
        "folder": str(folder),
        "method": str(method),
    }
    assert method.is_file()
    lines = commands.ok("new-plugin", "mild_turn", "--out", tmp_path).out.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'tinygrad-peft-mild-turn'}"


def test_new_plugin_refuses_names_that_are_taken(commands: Commands, tmp_path: Path) -> None:
    error = commands.fails("new-plugin", "lora", "--out", tmp_path)
    assert "an installed plugin provides the method 'lora'" in error
    assert list(tmp_path.iterdir()) == []


def test_the_kinds_of_the_option_are_those_of_the_kit() -> None:
    (option,) = (each for each in new_plugin.params if each.name == "kind")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == tuple(KINDS)
