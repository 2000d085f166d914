"""Standard streams that are closed, full or of another encoding, and an early Ctrl-C."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.toys import Commands
from tinygrad_peft.cli.app import cli

PROGRAM = (sys.executable, "-m", "tinygrad_peft")
DEMO = (sys.executable, "-m", "tinygrad_peft.cli.demo")
FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


def start(
    *arguments: str | Path | bytes,
    redirected: str = "",
    folder: Path | bytes | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a shell that redirects its streams."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", *arguments],
        cwd=folder,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def compare(world: Path, out: str | Path | bytes) -> list[str | Path | bytes]:
    return [
        *(*PROGRAM, "compare", "--model", world / "bert", "--train", world / "reviews.jsonl"),
        *("--eval", world / "more-reviews.jsonl", "--batch-size", "8", "--out", out),
        *("--method", "lora:r=2", "--baseline", "--epochs", "1"),
    ]


# ---------- closed ----------


@pytest.mark.parametrize("program", [(*PROGRAM, "methods"), (*PROGRAM, "-h"), DEMO])
def test_closed_output_is_refused_before_the_work(program: tuple[str, ...], tmp_path: Path) -> None:
    ran = start(*program, redirected=">&-", folder=tmp_path)
    told = b"standard output is closed: expected a place for the result (>/dev/null discards it)\n"
    assert (ran.returncode, ran.stderr.partition(b": ")[2]) == (2, told)
    assert list(tmp_path.iterdir()) == []


def test_closed_input_and_error_output_are_nobodys_loss() -> None:
    ran = start(*PROGRAM, "methods", redirected="<&- 2>&-")
    assert (ran.returncode, ran.stdout[:5]) == (0, b"adalo")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "import os\nfrom tinygrad_peft.cli.streams import prepare_streams\nprepare_streams()\n"
        "raise SystemExit(os.open('file', os.O_CREAT) <= 2)"
    )
    ran = start(sys.executable, "-c", program, redirected="<&- >&- 2>&-", folder=tmp_path)
    assert ran.returncode == 0


# ---------- full ----------


@needs_full_disk
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("methods",), ("methods", "--json"), ("count", "-h")])
def test_output_that_does_not_fit_is_an_error(arguments: tuple[str, ...], unbuffered: str) -> None:
    ran = start(*PROGRAM, *arguments, redirected=f">{FULL}", PYTHONUNBUFFERED=unbuffered)
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"tinygrad-peft: ")
    assert ran.stderr.endswith(b"No space left on device\n")
    assert ran.stderr.count(b"\n") == 1


@pytest.mark.slow
@needs_full_disk
def test_a_log_on_a_full_disk_ends_no_work(small_world: Path, tmp_path: Path) -> None:
    ran = start(*compare(small_world, tmp_path / "out"), redirected=f"2>{FULL}")
    assert (ran.returncode, (tmp_path / "out" / "comparison.json").exists()) == (0, True)
    ran = start(*PROGRAM, "methds", redirected=f"2>{FULL}")
    assert (ran.returncode, ran.stderr) == (2, b"")


# ---------- Ctrl-C ----------


@pytest.mark.parametrize("module", ["click", "numpy"])
@pytest.mark.parametrize("program", [PROGRAM, ("tinygrad-peft",)])
def test_ctrl_c_while_something_is_imported_shows_no_traceback(
    program: tuple[str, ...], module: str, tmp_path: Path
) -> None:
    if program != PROGRAM:
        program = (str(Path(sys.executable).with_name(program[0])),)
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n"
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = start(*program, "methods", PYTHONPATH=path)
    assert (ran.returncode, ran.stdout) == (130, b"")
    assert ran.stderr == b"tinygrad-peft: stopped by Ctrl-C\n"


# ---------- encodings ----------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_for_a_console_that_is_not_unicode_is_escaped(
    encoding: str, small_world: Path
) -> None:
    generate = ("generate", "--model", small_world / "gpt2", "--max-new-tokens", "1")
    prompt = ("--prompt", "the film │ · –")
    ran = start(*PROGRAM, *generate, *prompt, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"the film ")


@pytest.mark.slow
def test_a_comparison_is_shown_on_a_latin_1_console(small_world: Path, tmp_path: Path) -> None:
    ran = start(*compare(small_world, tmp_path / "out"), PYTHONIOENCODING="latin-1")
    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False)
    assert b"\\u2013" in ran.stdout  # the dash of a cell without a number


def test_json_for_a_console_that_is_not_unicode_is_json(small_world: Path) -> None:
    prompt = "the film \U0001f600 ä"
    generate = ("generate", "--model", small_world / "gpt2", "--max-new-tokens", "1", "--json")
    ran = start(*PROGRAM, *generate, "--prompt", prompt, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout.decode("ascii"))["prompt"] == prompt


# ---------- paths ----------

NOT_UTF8 = b"caf\xe9"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_a_path_that_is_not_utf8_is_refused_before_the_work(
    commands: Commands, command: str
) -> None:
    told = commands.fails(command, "--out", os.fsdecode(NOT_UTF8))
    assert told == "tinygrad-peft: arguments: expected UTF-8, got 'caf\\udce9'\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file names are text on this system")
def test_work_in_a_folder_whose_name_is_not_utf8(small_world: Path, tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), NOT_UTF8)  # noqa: PTH118 - a path of bytes
    os.mkdir(folder)  # noqa: PTH102
    ran = start(*compare(small_world, "out"), folder=folder)
    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False)
    assert b"comparison.json" in b" ".join(os.listdir(os.path.join(folder, b"out")))  # noqa: PTH118, PTH208
