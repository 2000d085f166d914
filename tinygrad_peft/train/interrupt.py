"""Ctrl-C, held back until it does no harm."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]

logger = logging.getLogger(__name__)


class Interrupts:
    """Within the block, hold back the first Ctrl-C until a shielded part ends, but not the second.

    An optimiser's step that breaks off in the middle leaves half of the weights moved. In threads
    other than the main one, and in a program with a SIGINT handler of its own, nothing changes.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shielded = False
        self._installed = False

    @property
    def insistent(self) -> bool:
        """True once Ctrl-C came again, so that nothing more should be done."""
        return self.count > 1

    def __enter__(self) -> Self:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Shield a block: a first Ctrl-C in it raises KeyboardInterrupt at its end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self.count:
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.insistent or not self._shielded:
            raise KeyboardInterrupt
        logger.warning("stopping after this step; press Ctrl-C again to stop at once")
