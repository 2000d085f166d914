"""The peak memory of the process."""

import ctypes
import sys
from pathlib import Path

__all__ = ["MemoryMeter", "peak_memory", "reset_peak_memory"]

_RESET_PEAK = "5"  # see proc(5)


def peak_memory() -> int | None:
    """Return the most bytes since the start or the last reset; None if the system has no count."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak_memory() -> bool:
    """Reset the peak to the memory in use now; return False if the system cannot.

    Freed memory goes back to the system first, which `keep_freed_memory` otherwise delays.
    """
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


class MemoryMeter:
    """The peak memory since the meter was made."""

    def __init__(self) -> None:
        self._before = 0 if reset_peak_memory() else peak_memory() or 0

    def read(self) -> int | None:
        """Return bytes; None without a count, or if only an earlier and higher peak is known."""
        peak = peak_memory()
        return peak if peak is not None and peak > self._before else None
