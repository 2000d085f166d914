"""The commands' options, help, errors and exit statuses."""

import os
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from tests.cli.toys import Commands
from tinygrad_peft.cli.app import cli
from tinygrad_peft.train.interrupt import Stopped

COMMANDS = sorted(cli.commands)
PROGRAM = (sys.executable, "-m", "tinygrad_peft")


def start(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


# ---------- help ----------


def test_expected_commands_exist() -> None:
    wanted = {"methods", "fetch", "finetune", "evaluate", "generate", "merge", "count"}
    assert wanted <= set(COMMANDS)


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys; from tinygrad_peft.cli.app import cli, run; run(['-h'])\n"
        "for name in cli.commands: run([name, '-h'])\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    ran = start(sys.executable, "-c", program, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stderr.split())
    assert "tinygrad_peft.cli.app" in loaded
    slow = {"msgspec", "numpy", "pluggy", "rich", "safetensors", "tokenizers"}
    assert loaded & slow == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(commands: Commands, command: str) -> None:
    shown = commands.ok(command, "--help").out
    for parameter in cli.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.opts}"
            assert parameter.opts[0] in shown


def test_help_of_each_command_fits_its_line(commands: Commands) -> None:
    shown = commands.ok("--help").out
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str) -> None:
    assert any("--json" in parameter.opts for parameter in cli.commands[command].params)


def test_version_is_the_distributions(commands: Commands) -> None:
    told = commands.ok("--version").out
    assert told == f"tinygrad-peft, version {version('tinygrad-peft')}\n"


# ---------- errors ----------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("finetun",), "No such command 'finetun'"),
        (("evaluate", "--modle", "m"), "No such option '--modle'. Did you mean '--model'?"),
        (("evaluate", "--data", "d"), "Missing option '--model'"),
        (("count", "--shape", "gpt2"), "Missing option '--method'"),
        (("evaluate", "--batch-size", "many"), "'many' is not a valid integer"),
        (("merge", "--dtype", "float8"), "'float8' is not one of 'float32', 'float16', 'bfloat16'"),
    ],
)
def test_wrong_command_line_is_refused_with_the_help_to_read(
    commands: Commands, arguments: tuple[str, ...], told: str
) -> None:
    message = commands.fails(*arguments)
    assert told in message
    assert "--help' for help." in message


METHOD_ERRORS = [
    ("lorra", "unknown method 'lorra'; did you mean 'lora' or"),
    ("lora:r=four", "r: expected int, got 'four'"),
    ("lora:lora_alhpa=4", "lora_alhpa; did you mean 'lora_alpha'"),
    ("lora:r", "expected KEY=VALUE, got 'r'"),
    ("lora:r=4,r=8", "r is set twice"),
    ("lora:r=0", "the rank r=0 must be at least 1"),
    ('lora:{"r": ', "invalid JSON"),
    ("lora:target_modules=c_attn+qery", "'qery' matches no module"),
]


@pytest.mark.parametrize(("spec", "told"), METHOD_ERRORS)
def test_wrong_method_is_refused(commands: Commands, spec: str, told: str) -> None:
    message = commands.fails("count", "--shape", "gpt2", "--method", spec)
    assert message.startswith("tinygrad-peft: ")
    assert told in message


def test_process_fails_with_one_line_and_status_2(tmp_path: Path) -> None:
    ran = start(*PROGRAM, "count", "--shape", "gpt3", "--method", "lora", folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("tinygrad-peft: unknown shape 'gpt3'; did you mean 'gpt2'")
    assert "Traceback" not in ran.stderr


def test_debug_shows_where_it_failed(tmp_path: Path) -> None:
    arguments = ("count", "--shape", "gpt3", "--method", "lora", "--debug")
    ran = start(*PROGRAM, *arguments, folder=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Traceback")
    assert "ConfigError: unknown shape 'gpt3'" in ran.stderr


def test_the_console_script_is_the_module(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("tinygrad-peft")
    ran = start(str(script), "count", "--shape", "gpt2", "--method", "lora:r=8", folder=tmp_path)
    same = start(*PROGRAM, "count", "--shape", "gpt2", "--method", "lora:r=8", folder=tmp_path)
    assert ran.returncode == same.returncode == 0
    assert "294,912" in ran.stdout
    assert ran.stdout == same.stdout


def test_fault_of_the_program_is_an_internal_error_with_status_1(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(**_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli.commands["methods"], "callback", fault)
    message = commands.fails("methods", status=1)
    assert message == (
        "tinygrad-peft: internal error: ZeroDivisionError: division by zero "
        "(--debug shows where; please report it)\n"
    )


@pytest.mark.parametrize(
    ("error", "told", "status"),
    [
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file", 2),
        (OSError("disk on fire"), "disk on fire", 2),
        (MemoryError(), "out of memory: try a smaller --batch-size", 2),
        (KeyboardInterrupt(), "stopped by Ctrl-C", 130),
    ],
)
def test_system_errors_are_one_line(
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    told: str,
    status: int,
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.commands["methods"], "callback", fail)
    assert told in commands.fails("methods", status=status)


# ---------- closed pipes ----------


def start_with_closed(stream: str, *arguments: str) -> tuple[int, str]:
    """Run a program whose reader of `stream` is gone; return its status, and the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        arguments,
        stdout=writer if stream == "stdout" else subprocess.PIPE,
        stderr=writer if stream == "stderr" else subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(writer)
    return ran.returncode, (ran.stdout or "") + (ran.stderr or "")


COUNT = ("count", "--shape", "gpt2", "--method")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-h",),
        ("count", "-h"),
        ("--version",),
        (*COUNT, "lora"),
        (*COUNT, "lora", "--json"),
        (*COUNT, "lora", "--debug"),
    ],
)
def test_closed_output_ends_a_command_quietly(arguments: tuple[str, ...]) -> None:
    assert start_with_closed("stdout", *PROGRAM, *arguments) == (141, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tinygrad_peft", "counts"),
        ("tinygrad_peft", *COUNT, "lorra"),
        ("tinygrad_peft.cli.demo", "--out", __file__),
    ],
)
def test_closed_error_output_ends_a_command_quietly(arguments: tuple[str, ...]) -> None:
    assert start_with_closed("stderr", sys.executable, "-m", *arguments) == (141, "")


def test_head_gets_its_lines(tmp_path: Path) -> None:
    pipe = f"{shlex.join((*PROGRAM, 'methods'))} | head -n 1"
    ran = start("sh", "-c", pipe, folder=tmp_path)
    assert (len(ran.stdout.splitlines()), ran.stderr) == (1, "")


# ---------- plugins ----------


def test_plugins_are_switched_off_for_one_command(commands: Commands) -> None:
    count = ("count", "--shape", "gpt2", "--method", "vera:r=4")
    told = commands.fails("--without", "vera", "--without", "ia3", *count)
    assert "unknown method 'vera'" in told
    assert "plugin 'vera' of tinygrad-peft" in told
    assert "switched off" in told
    assert commands(*count).status == 0
    assert "'vrea'; did you mean 'vera'" in commands.fails("--without", "vrea", "methods")


def test_error_in_a_hook_names_its_plugin(commands: Commands) -> None:
    told = commands.fails("count", "--shape", "gpt2", "--method", BAD_PROMPT)
    assert "PromptTuningConfig cannot be trained" in told
    assert f"(plugin 'prompt' of tinygrad-peft {version('tinygrad-peft')}, hook count_" in told


BAD_PROMPT = "prompt_tuning:prompt_tuning_init_text=hello"


@pytest.mark.parametrize(
    ("stop", "said", "status"),
    [
        (KeyboardInterrupt(), "stopped by Ctrl-C", 130),
        (Stopped(signal.SIGTERM), "stopped by SIGTERM", 143),
    ],
)
def test_exit_status_names_the_signal_that_ended_a_command(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, stop: BaseException, said: str, status: int
) -> None:
    def stopped(*_given: object, **_named: object) -> None:
        raise stop

    monkeypatch.setattr(cli.commands["methods"], "callback", stopped)
    ran = commands("methods")
    assert (ran.status, ran.err) == (status, f"tinygrad-peft: {said}\n")
