"""The command line: exercises in a file, and a verdict on each."""

import argparse
import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TextIO, TypeAlias

import numpy as np

from tinygrad_peft.reference.check.accounting import check_efficiency
from tinygrad_peft.reference.check.attention import check_attention
from tinygrad_peft.reference.check.comparing import Different, call, taken_from
from tinygrad_peft.reference.check.layers import check_adapter, check_prompt
from tinygrad_peft.reference.check.lora import check_backward, check_layer
from tinygrad_peft.reference.check.manager import check_manager
from tinygrad_peft.reference.check.quantization import check_quantization

__all__ = ["main"]

_Check: TypeAlias = Callable[[ModuleType, np.random.Generator], None]


@dataclass(frozen=True)
class _Exercise:
    names: tuple[str, ...]
    check: _Check

    def is_in(self, solution: ModuleType) -> bool:
        return any(taken_from(solution, name) for name in self.names)

    @property
    def title(self) -> str:
        return ", ".join(self.names)


MODULE = "my_solution"  # as the solution is known to itself
EXERCISES = {
    "9.5": _Exercise(("LoRALayer",), check_layer),
    "9.6": _Exercise(("lora_backward",), check_backward),
    "9.7": _Exercise(("Adapter",), check_adapter),
    "9.8": _Exercise(("PromptTuning",), check_prompt),
    "9.9": _Exercise(("LoRAMultiHeadAttention",), check_attention),
    "9.10": _Exercise(("analyze_peft_efficiency",), check_efficiency),
    "9.11": _Exercise(("LoRAManager",), check_manager),
    "9.12": _Exercise(("quantize_to_4bit", "dequantize_4bit", "QLoRALayer"), check_quantization),
}


def run(arguments: Sequence[str]) -> NoReturn:
    """Check a file and end the process, with all threads that a solution left behind."""
    given = _parsed(arguments)
    out, sys.stdout = sys.stdout, sys.stderr  # for good: a thread may print until the end
    status = _check(given, out)
    out.flush()
    sys.stderr.flush()
    os._exit(status)


def main(arguments: Sequence[str]) -> int:
    """Check a file and print what is found.

    Returns 0 where all is right, 1 where something differs, and 2 where there is nothing to check.
    """
    given, out = _parsed(arguments), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        return _check(given, out)


def _check(given: argparse.Namespace, out: TextIO) -> int:
    """Print the report; what the solution prints is not a part of it."""
    try:
        solution = _load(given.file, given.seconds)
    except Different as fault:
        print(fault, file=sys.stderr)
        return 2
    wanted = given.exercises or [n for n, e in EXERCISES.items() if e.is_in(solution)]
    if not wanted:
        names = ", ".join(e.title for e in EXERCISES.values())
        print(f"{given.file}: expected at least one of {names}, got none", file=sys.stderr)
        return 2
    verdicts = [_verdict(solution, number, given.seconds) for number in wanted]
    for number, verdict in zip(wanted, verdicts, strict=True):
        print(f"{number:<5} {EXERCISES[number].title}: {verdict or 'right'}", file=out)
    right = verdicts.count(None)
    print(f"{right} of {len(wanted)} right", file=out)
    return 0 if right == len(wanted) else 1


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_args(arguments)
    unknown = [number for number in given.exercises if number not in EXERCISES]
    if unknown:
        parser.error(f"unknown exercise {', '.join(unknown)}, expected {', '.join(EXERCISES)}")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinygrad_peft.reference check",
        description=(
            "Run the classes and functions of your solution beside the reference, with the same "
            "arrays, and print the first difference in each exercise. Your file is executed: check "
            "only what you would run yourself. What it prints goes to standard error."
        ),
        epilog="Exit status: 0 all right, 1 differences, 2 nothing to check.",
    )
    parser.add_argument("file", type=Path, help="a Python file with the names of the exercises")
    parser.add_argument(
        "exercises",
        nargs="*",
        default=[],
        metavar="EXERCISE",
        help=f"one of {', '.join(EXERCISES)}; left out, all that are in the file",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        help="how long each exercise may take (%(default)g)",
    )
    return parser


def _seconds(text: str) -> float:
    """Return a time that a thread can be waited for."""
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= threading.TIMEOUT_MAX:
            return seconds
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")


def _load(path: Path, seconds: float) -> ModuleType:
    """Execute the solution as a module, which may import its neighbours."""
    if not path.is_file():
        raise Different(f"{path}: expected a file, got none")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise Different(f"{path}: expected a Python file, named *.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # dataclasses look their module up
    sys.path.insert(0, os.fspath(path.resolve().parent))
    execute = spec.loader.exec_module
    fault = _in_time(seconds, lambda: call("executing it", execute, module))
    if fault is not None:
        raise Different(f"{path}: {fault}")
    return module


def _verdict(solution: ModuleType, number: str, seconds: float) -> str | None:
    """Find the first difference in an exercise, or None."""
    exercise = EXERCISES[number]
    if not exercise.is_in(solution):
        return "not in the file"
    return _in_time(seconds, lambda: exercise.check(solution, np.random.default_rng(0)))


def _in_time(seconds: float, check: Callable[[], object]) -> str | None:
    """Return what a check finds, in a thread that is left behind if it does not end."""
    found: list[str | None] = []

    def run() -> None:
        try:
            check()
        except Different as fault:
            found.append(str(fault))
        except SystemExit:
            found.append("calls exit()")
        except Exception as error:  # noqa: BLE001 - a solution may return objects of any kind
            found.append(f"cannot be compared: {type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 - and may raise those of any kind
            found.append(f"raises {type(error).__name__}: {error}".removesuffix(": "))
        else:
            found.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"does not end within {seconds:g} seconds"
