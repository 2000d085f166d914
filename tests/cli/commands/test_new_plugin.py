"""new-plugin: a distribution to start from."""

from pathlib import Path

from tests.cli.toys import Commands


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
