"""A time limit for compiled code that cannot be stopped."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within_seconds"]

T = TypeVar("T")


def within_seconds(seconds: float, work: Callable[[], T]) -> T:
    """Return `work()`, or raise what it raises.

    Raises TimeoutError after `seconds`: the work then goes on in a thread of its own, which ends
    with the process. It must be code that releases Python's lock.
    """
    done: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is not an Exception
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"it takes more than {seconds:.1f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # without an error it is a T
