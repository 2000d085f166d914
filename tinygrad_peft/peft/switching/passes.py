"""Passes that read an adapter's weights, and changes of these weights, which exclude each other."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Condition, get_ident

from tinygrad_peft.errors import PeftError

__all__ = ["Passes"]


class Passes:
    """The passes that run now, and the one change at most.

    A change waits for the passes that use its adapters, and passes that begin wait for the change.
    Nothing waits for itself: a thread that changes weights may run them, and a pass within a pass
    waits only while weights are being written, not for a change that waits for the outer one.
    """

    def __init__(self) -> None:
        self._news = Condition()
        self._used: Counter[str] = Counter()  # how many passes use each adapter
        self._depth: Counter[int] = Counter()  # how many passes each thread is within
        self._changer: int | None = None  # the thread that changes weights, or waits to
        self._changed: frozenset[str] = frozenset()
        self._writing = False

    @contextmanager
    def running(self, names: Collection[str]) -> Iterator[None]:
        """Run a pass that uses these adapters."""
        me = get_ident()
        with self._news:
            if self._must_wait(me, names):
                self._news.wait_for(lambda: not self._must_wait(me, names))
            self._count(me, names, 1)
        try:
            yield
        finally:
            with self._news:
                self._count(me, names, -1)
                if self._changer is not None:
                    self._news.notify_all()

    def _count(self, thread: int, names: Collection[str], more: int) -> None:
        for name in names:
            self._used[name] += more
        self._depth[thread] += more
        if not self._depth[thread]:
            del self._depth[thread]  # most threads end some day

    def _must_wait(self, me: int, names: Collection[str]) -> bool:
        if self._changer in (None, me) or self._changed.isdisjoint(names):
            return False
        return self._writing or me not in self._depth

    @contextmanager
    def changing(self, names: Collection[str]) -> Iterator[None]:
        """Change the weights of these adapters.

        Raises PeftError within a pass of the same thread.
        """
        me = get_ident()
        with self._news:
            nested = self._changer == me
            if me in self._depth and not nested:
                raise PeftError("weights cannot change within a pass, such as in on_token")
            if not nested:
                self._news.wait_for(lambda: self._changer is None)
                self._changer, self._changed = me, frozenset(names)
        try:
            if not nested:
                with self._news:
                    self._news.wait_for(lambda: not any(self._used[n] for n in self._changed))
                    self._writing = True
            yield
        finally:
            if not nested:
                with self._news:
                    self._changer, self._changed, self._writing = None, frozenset(), False
                    self._news.notify_all()
