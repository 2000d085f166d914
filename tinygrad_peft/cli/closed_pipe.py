"""A quiet end when the reader of the output, such as `head`, has closed it."""

import os
import sys

__all__ = ["CLOSED_PIPE", "discard_output"]

CLOSED_PIPE = 141  # 128 + SIGPIPE, the status that a shell gives other tools


def discard_output() -> None:
    """Send the rest of a closed stream nowhere, as the flush at exit would fail."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
