"""The commands' options, help, errors and exit statuses."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from tests.cli.toys import Commands
from tinygrad_peft.cli.app import cli

COMMANDS = sorted(cli.commands)
PROGRAM = (sys.executable, "-m", "tinygrad_peft")


def start(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


# ---------- help ----------


def test_the_commands_of_the_contract_are_there() -> None:
    wanted = {"methods", "fetch", "finetune", "evaluate", "generate", "merge", "count"}
    assert wanted <= set(COMMANDS)


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys; from tinygrad_peft.cli.app import run; run(['-h']); run(['finetune', '-h'])"
        "; print(*sys.modules, sep='\\n', file=sys.stderr)"
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str) -> None:
    assert any("--json" in parameter.opts for parameter in cli.commands[command].params)


def test_the_version_is_that_of_the_distribution(commands: Commands) -> None:
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
def test_a_wrong_command_line_is_told_with_the_help_to_read(
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
def test_a_wrong_method_is_told(commands: Commands, spec: str, told: str) -> None:
    message = commands.fails("count", "--shape", "gpt2", "--method", spec)
    assert message.startswith("tinygrad-peft: ")
    assert told in message


def test_a_process_fails_by_a_line_and_status_2(tmp_path: Path) -> None:
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


def test_a_fault_of_the_program_is_told_apart(
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
def test_what_the_system_refuses_is_told_in_a_line(
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


# ---------- methods ----------


def test_methods_lists_plugins_with_their_settings(commands: Commands) -> None:
    plugins = commands.ok("methods", "--json").json["plugins"]
    assert isinstance(plugins, list)
    lora = next(plugin for plugin in plugins if plugin["plugin"] == "lora")
    assert lora["distribution"] == "tinygrad-peft"
    assert lora["version"] == version("tinygrad-peft")
    (method,) = lora["methods"]
    assert method["name"] == "lora"
    assert method["learning_rate"] == 0.001
    assert (method["settings"]["r"], method["settings"]["bias"]) == ("8", "'none'")
    lines = commands.ok("methods").out.splitlines()
    assert f"lora: tinygrad-peft {version('tinygrad-peft')}" in lines
    assert "  lora (learning rate 0.001)" in lines
    assert "    r = 8" in lines


def test_methods_lists_a_plugin_that_cannot_be_used_with_its_error(commands: Commands) -> None:
    plugins = commands.ok("--without", "vera", "methods", "--json").json["plugins"]
    assert isinstance(plugins, list)
    found = {plugin["plugin"]: plugin for plugin in plugins}
    assert (found["vera"]["error"], found["vera"]["methods"]) == ("switched off", [])
    assert found["lora"]["error"] is None
    lines = commands.ok("--without", "vera", "methods").out.splitlines()
    at = lines.index(f"vera: tinygrad-peft {version('tinygrad-peft')}")
    assert lines[at + 1] == "  cannot be used: switched off"


def test_plugins_are_left_out_for_one_command(commands: Commands) -> None:
    count = ("count", "--shape", "gpt2", "--method", "vera:r=4")
    told = commands.fails("--without", "vera", "--without", "ia3", *count)
    assert "unknown method 'vera'" in told
    assert "plugin 'vera' of tinygrad-peft" in told
    assert "switched off" in told
    assert commands(*count).status == 0
    assert "'vrea'; did you mean 'vera'" in commands.fails("--without", "vrea", "methods")


def test_an_error_in_a_hook_says_whose_it_is(commands: Commands) -> None:
    told = commands.fails("count", "--shape", "gpt2", "--method", BAD_PROMPT)
    assert "prompt_tuning cannot start so" in told
    assert f"(plugin 'prompt' of tinygrad-peft {version('tinygrad-peft')}, hook count_" in told


BAD_PROMPT = "prompt_tuning:prompt_tuning_init_text=hello"
