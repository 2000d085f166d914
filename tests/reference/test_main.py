import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "tinygrad_peft.reference"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize(
    "line",
    [
        "A (8, 256), B (256, 8)",
        "4,096 parameters of 65,536: 6.25 %",
        "input (2, 16, 256), output (2, 16, 256)",
        "gradients: A (8, 256), B (256, 8), input (2, 16, 256)",
        "bottleneck 64, 32,768 parameters",
        "16 -> 36 tokens, 5,120 parameters",
        "full 2,147,483,648 100 %",
        "lora 4,194,304 0.1953 %",
        "adapters 33,554,432 1.5625 %",
        "prefix 2,621,440 0.1221 %",
        "prompt 81,920 0.0038 %",
    ],
)
def test_the_demonstration_shows_the_courses_figures(shown: str, line: str) -> None:
    assert line in [" ".join(printed.split()) for printed in shown.splitlines()]


def test_the_reference_loads_nothing_but_numpy_and_itself(tmp_path: Path) -> None:
    program = (
        "import sys, numpy.random; before = {*sys.modules}; import tinygrad_peft.reference;"
        "print(*{*sys.modules} - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    foreign = [
        name
        for name in run.stdout.split()
        if name.partition(".")[0] not in {"numpy", *sys.stdlib_module_names}
        and name != "tinygrad_peft"
        and not f"{name}.".startswith("tinygrad_peft.reference.")
    ]
    assert foreign == []
