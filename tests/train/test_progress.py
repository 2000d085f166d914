"""The progress of a run."""

import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.train.toys import classifier, countings, language_model, needles
from tinygrad_peft.train import Evaluated, TrainConfig, TrainingEnded, train
from tinygrad_peft.train.progress import ending_line, evaluation_line, progress_display

ROOT = Path(__file__).parents[2]
CONFIG = TrainConfig(batch_size=4, epochs=2)

PROGRAM = """
from tests.train.toys import classifier, needles
from tinygrad_peft.train import TrainConfig, train
from tinygrad_peft.train.progress import progress_display

with progress_display() as display:
    config = TrainConfig(batch_size=4, epochs=2)
    train(classifier(), needles(16), needles(8), config, observers=[display])
"""


def test_without_a_terminal_there_is_a_line_for_each_evaluation_and_the_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with progress_display() as display:
        train(classifier(), needles(16), needles(8), CONFIG, observers=[display])
    output, errors = capfd.readouterr()
    first, second, last = errors.splitlines()
    assert output == ""
    assert re.fullmatch(r"step 4/8: loss 0\.\d{4}, accuracy \d+\.\d\d %, the best so far", first)
    assert re.fullmatch(r"step 8/8: loss 0\.\d{4}, accuracy .*", second)
    assert re.fullmatch(r"finished after 8 steps in \d+ s \([\d,]+ tokens/s\)", last)


def test_a_language_model_shows_its_perplexity(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_display() as display:
        train(language_model(), countings(8), countings(4), CONFIG, observers=[display])
    assert re.match(r"step 2/4: loss 2\.\d{4}, perplexity 1\d\.\d\d", capfd.readouterr().err)


def test_quiet_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_display(quiet=True, live=True) as display:
        train(classifier(), needles(16), needles(8), CONFIG, observers=[display])
    assert capfd.readouterr() == ("", "")


def test_lines_have_the_figures_of_their_events() -> None:
    evaluated = Evaluated(
        step=40, epoch=1.0, loss=0.42, accuracy=0.823, perplexity=None, seconds=1.0, is_best=False
    )
    assert evaluation_line(evaluated, 120) == "step 40/120: loss 0.4200, accuracy 82.30 %"
    ended = TrainingEnded(
        model=classifier(),
        outcome="interrupted",
        step=7,
        seconds=34.9,
        tokens_per_second=4120.4,
        saved_to=Path("out"),
    )
    line = "interrupted after 7 steps in 35 s (4,120 tokens/s); the weights are in out"
    assert ending_line(ended) == line


def run_in_terminal(*arguments: str) -> str:
    """Run a program in a terminal; return its output without colours and cursor motions."""
    import pty  # POSIX alone has it

    leader, follower = pty.openpty()
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=follower, stderr=follower, env=environment
    ):
        os.close(follower)
        printed = b""
        while chunk := _read(leader):
            printed += chunk
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode()).replace("\r", "\n")


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # how Linux says that the other end was closed
        return b""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.skipif(find_spec("rich") is None, reason="the extra cli is not installed")
def test_a_terminal_shows_a_live_line_below_the_evaluations() -> None:
    shown = run_in_terminal("-c", PROGRAM)
    live = r"step +\d/8 \S+ [\d:-]+ loss \d\.\d{4}  lr \d\.\de[-+]\d\d  [\d,]+ tokens/s"
    assert re.search(live, shown)
    assert re.search(r"step 4/8: loss .* the best so far\n", shown)
    assert re.search(r"finished after 8 steps", shown)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.skipif(find_spec("rich") is None, reason="the extra cli is not installed")
def test_a_second_run_begins_the_live_line_anew() -> None:
    again = "    train(classifier(), needles(8), None, config, observers=[display])\n"
    shown = run_in_terminal("-c", PROGRAM + again)
    assert re.search(r"step +4/4 ", shown[shown.index("finished after 8 steps") :])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_plain_lines_where_rich_is_not_installed() -> None:
    hidden = "import sys; sys.modules['rich'] = None\n"  # as if it were not installed
    lines = run_in_terminal("-c", hidden + PROGRAM).split("\n")
    assert [line.split(":")[0].split(" in ")[0] for line in lines if line] == [
        *("step 4/8", "step 8/8"),
        "finished after 8 steps",
    ]


class Gone(io.StringIO):
    """The standard error of a process whose terminal is gone."""

    def write(self, _text: str) -> int:
        raise OSError(5, "Input/output error")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_that_is_gone_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, *, live: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    with progress_display(live=live) as display:
        result = train(classifier(), needles(16), needles(8), CONFIG, observers=[display])
    assert result.outcome == "finished"
