"""plot: pictures of comparisons."""

from pathlib import Path

import pytest

from tests.cli.commands.test_compare import compare, methods
from tests.cli.toys import Commands
from tinygrad_peft.train import plot as plotting
from tinygrad_peft.train.comparison_result import read_comparison

NEEDED = "matplotlib is not installed: pip install 'tinygrad-peft[plot]'"


def test_a_picture_is_drawn_again_from_the_file(
    small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    out = tmp_path / "out"
    commands.ok(*compare(small_world, out, *methods("lora:r=4"), "--quiet"))
    picture = out / "comparison.png"
    before = picture.read_bytes()
    picture.unlink()
    assert commands.ok("plot", out).out == f"drawn: {picture}\n"
    assert picture.read_bytes() == before
    assert commands.ok("plot", out, "--json").json == {"plot": str(picture)}


def test_without_matplotlib_one_line_says_what_to_install(
    small_world: Path, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda _name: None)
    out = tmp_path / "out"
    ran = commands.ok(*compare(small_world, out, *methods("lora:r=4"), "--quiet"))
    assert ran.out.splitlines()[-2:] == [
        f"comparison.png is not drawn: {NEEDED}, then tinygrad-peft plot {out}",
        f"written: comparison.json and the adapters in {out}",
    ]
    assert len(read_comparison(out / "comparison.json").rows) == 1
    assert commands.fails("plot", out) == f"tinygrad-peft: {NEEDED}\n"


def test_folder_without_a_comparison_is_refused(tmp_path: Path, commands: Commands) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    message = commands.fails("plot", tmp_path)
    assert message == (f"tinygrad-peft: {tmp_path / 'comparison.json'} does not exist\n")
