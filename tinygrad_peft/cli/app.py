"""The program: its commands, errors, warnings and exit statuses."""

import sys
import warnings
from collections.abc import Sequence
from signal import SIGINT
from typing import TextIO

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.commands import COMMANDS
from tinygrad_peft.cli.streams import CLOSED_PIPE, discard_output
from tinygrad_peft.errors import TinygradPeftError, explained, printable

__all__ = ["cli", "run"]


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; errors are plain lines on standard error.

    0: done; 1: a fault of this program, or in what `inspect` read; 2: an error that the user can
    mend; 128 and the number of a signal that ended it: 130 is Ctrl-C, 143 SIGTERM, 129 SIGHUP; 141:
    the reader of the output, such as `head`, has closed it.
    """
    try:
        broken = [argument for argument in arguments if not _is_unicode(argument)]
        if broken:
            return _fail(f"arguments: expected UTF-8, got {', '.join(map(ascii, broken))}", 2)
        if "--debug" in arguments:
            return _call([argument for argument in arguments if argument != "--debug"])
        return _guarded(arguments)
    except BrokenPipeError:
        discard_output()
        return CLOSED_PIPE


def _is_unicode(text: str) -> bool:
    """Return False for bytes that are not UTF-8, which no JSON file could name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _guarded(arguments: Sequence[str]) -> int:
    """Show errors and warnings as plain lines."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _call(arguments)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt) as stop:
        return _fail(*_stopped(stop))
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - no traceback without --debug
        discard_output()  # of a full disk, after which Python would end with a status of its own
        return _fail(*_explained(error))


def _call(arguments: Sequence[str]) -> int:
    """Run a command. `cli.main` would end a closed pipe with status 1."""
    try:
        with cli.make_context("tinygrad-peft", list(arguments)) as context:
            status: int | None = cli.invoke(context)
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    return status or 0


def _stopped(stop: BaseException) -> tuple[str, int]:
    """Return the message and the exit status after a signal: 128 and its number."""
    from tinygrad_peft.train.interrupt import Stopped

    if isinstance(stop, Stopped):
        return f"stopped by {stop.signal.name}", 128 + stop.signal
    return "stopped by Ctrl-C", 128 + SIGINT


def _explained(error: Exception) -> tuple[str, int]:
    """Return a message for the user, and the exit status."""
    if isinstance(error, TinygradPeftError):
        return explained(error), 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 2
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --batch-size or --max-length", 2
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (--debug shows where; please report it)", 1


def _fail(message: str, status: int) -> int:
    _say(message)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the standard library's signature
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Show a warning without its line of source."""
    _say(f"warning: {message}")


def _say(message: str) -> None:
    print(f"tinygrad-peft: {printable(message)}", file=sys.stderr)


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tinygrad-peft", prog_name="tinygrad-peft")
@click.option(
    "--without",
    "names",
    type=options.NAME,
    multiple=True,
    metavar="PLUGIN",
    help="Switch an installed plugin off.",
)
@click.pass_context
def cli(context: click.Context, *, names: tuple[str, ...]) -> None:
    """Fine-tune real transformers on a CPU with PEFT methods that are all plugins.

    Every command takes --json for one JSON object on standard output, and --debug for a traceback
    of an error.
    """
    if names:
        from tinygrad_peft.host import leaving_out

        context.with_resource(leaving_out(names))
