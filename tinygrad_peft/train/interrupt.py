"""Signals that end a run, held back until they do no harm."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts", "Stopped"]

logger = logging.getLogger(__name__)

# Each with the handler that it has unless the program, or nohup, has set another.
_DEFAULTS = {
    number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
}


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asks the program to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.signal = number


class Interrupts:
    """Within the block, hold back the first signal until a shielded part ends, but not the second.

    The signals are Ctrl-C (SIGINT), SIGTERM and SIGHUP. An optimiser's step that breaks off in the
    middle leaves half of the weights moved. In threads other than the main one nothing changes, nor
    for a signal that the program handles itself or ignores.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = signal.SIGINT  # the signal that came first, once one has come
        self._shielded = False
        self._installed: list[signal.Signals] = []

    @property
    def insistent(self) -> bool:
        """True once a second signal came, so that nothing more should be done."""
        return self.count > 1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) is default:
                    signal.signal(number, self._on_signal)
                    self._installed.append(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in self._installed:
            signal.signal(number, _DEFAULTS[number])

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Shield a block: a first signal in it raises KeyboardInterrupt at its end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self.count:
            raise _error(self.first)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        came = signal.Signals(number)
        if self.count == 1:
            self.first = came
        if self.insistent or not self._shielded:
            raise _error(came)
        if came == signal.SIGINT:
            logger.warning("stopping after this step; press Ctrl-C again to stop at once")
        else:
            logger.warning("%s: stopping after this step; a second signal stops at once", came.name)


def _error(number: signal.Signals) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)
