import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.reference import Adapter, PromptTuning
from tinygrad_peft.reference.__main__ import Demonstration


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


def test_closed_output_ends_the_demonstration_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "tinygrad_peft.reference"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")


def test_an_unknown_argument_is_an_error() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tinygrad_peft.reference", "chekc", "mine.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "expected no argument or: check FILE [EXERCISE...], got chekc mine.py\n"


COURSE = """\
============================================================
Stage 9: Fine-tuning & Parameter-Efficient Methods
============================================================

1. LoRA (Low-Rank Adaptation)
----------------------------------------
Original weight shape: (256, 256)
LoRA A shape: (8, 256)
LoRA B shape: (256, 8)
LoRA parameters: 4,096
Full parameters: 65,536
Compression: 6.25%
Input shape: (2, 16, 256)
Output shape: (2, 16, 256)
Gradients computed: A=(8, 256), B=(256, 8)

2. Adapter Layers
----------------------------------------
Adapter parameters: 32,768
Bottleneck dimension: 64

3. Prompt Tuning
----------------------------------------
Original sequence length: 16
With soft prompt: 36
Prompt parameters: 5,120

4. PEFT Method Comparison (7B model scale)
----------------------------------------
Method               Parameters      Ratio     Description
----------------------------------------------------------------------
full_fine_tuning     2,147,483,648  100.0000%  Update all attention weights
lora                     4,194,304    0.1953%  LoRA rank=8 on Q,V
adapters                33,554,432    1.5625%  Bottleneck=64
prefix_tuning            2,621,440    0.1221%  10 prefix tokens
prompt_tuning               81,920    0.0038%  20 soft prompts
"""


def test_the_demonstration_begins_with_the_courses_lines(shown: str) -> None:
    expected = COURSE.splitlines()
    assert shown.splitlines()[: len(expected)] == expected


def test_more_is_said_after_the_courses_lines(shown: str) -> None:
    title, _, gradient, merged, moved = shown.splitlines()[-5:]
    assert title == "Beyond the course"
    assert gradient == "Gradient of the input: (2, 16, 256)"
    apart = re.fullmatch(r"After a step, merged and unmerged outputs are (\S+) apart", merged)
    assert apart is not None
    assert float(apart[1]) < 1e-12
    assert moved == "The adapter starts near the identity: no output moves by more than 0.03"


def test_the_figures_are_those_of_the_objects(capsys: pytest.CaptureFixture[str]) -> None:
    made = Demonstration(np.random.default_rng(0))
    made.prompt, made.adapter = PromptTuning(256, 7), Adapter(256, 5)
    print("\n".join(made.lines()))
    shown = capsys.readouterr().out
    assert "With soft prompt: 23\nPrompt parameters: 1,792\n" in shown
    assert "Adapter parameters: 2,560\nBottleneck dimension: 5\n" in shown


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
