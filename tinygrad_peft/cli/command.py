"""Commands that return a report, and the one place that prints it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from tinygrad_peft.cli.streams import in_streams_encoding

__all__ = ["Report", "command"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a command.

    values: names and values for programs, as plain Python.
    lines: the same for people.
    status: the exit status.
    """

    values: Mapping[str, object]
    lines: Sequence[str]
    status: int = 0

    def json(self) -> str:
        """Return the values as one JSON object; numbers that are not finite become null.

        Characters that standard output cannot show are escaped as JSON has it.
        """
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(self.values), indent=2).decode()
        return text if in_streams_encoding(text) else json.dumps(json.loads(text), indent=2)

    def text(self) -> str:
        """Return the lines."""
        return "\n".join(self.lines)


def _show(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, and the error names no file
        raise OSError(error.errno, error.strerror, "standard output") from None


def command(function: Callable[..., Report]) -> click.Command:
    """Make a command of a function: print its report, as JSON with --json.

    With --json a command that takes `quiet` is quiet.
    """

    @wraps(function)
    def print_report(*, as_json: bool, **given: Any) -> int:  # noqa: ANN401 - as click gives them
        if "quiet" in given:
            given["quiet"] |= as_json
        report = function(**given)
        _show(report.json() if as_json else report.text())
        return report.status

    made = click.command()(print_report)
    made.params.append(
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON object, and no more.")
    )
    return made
