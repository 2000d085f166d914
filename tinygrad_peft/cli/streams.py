"""The standard streams: closed ones, full disks behind them, and characters they cannot show."""

import errno
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["CLOSED_PIPE", "NO_OUTPUT", "discard_output", "in_streams_encoding", "prepare_streams"]

CLOSED_PIPE = 141  # 128 + SIGPIPE, the status that a shell gives other tools


NO_OUTPUT = "standard output is closed: expected a place for the result (>/dev/null discards it)"


def prepare_streams() -> bool:
    """Make the streams safe to write to; return False if there is no standard output.

    A stream that is closed (`>&-`) is opened on the null device, since the next file that is opened
    would take its place. Characters outside a stream's encoding are escaped. Standard error may be
    a log on a full disk, which must not end the work: what does not fit is lost.
    """
    has_output = sys.stdout is not None
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _open_nowhere(number)
    if has_output and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = TextIOWrapper(
        BufferedWriter(_Log(2, "w", closefd=False)),
        encoding=None if sys.stderr is None else sys.stderr.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
    return has_output


class _Log(FileIO):
    """A file whose disk may be full."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return memoryview(data).nbytes


def _open_nowhere(number: int) -> None:
    """Open the null device as the stream of that number: the lowest that is free."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def in_streams_encoding(text: str) -> bool:
    """Return True if standard output can show the text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def discard_output() -> None:
    """Send the rest of a closed or full stream nowhere, as the flush at exit would fail."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
