"""How much memory the process has had at most."""

import ctypes
import sys
from pathlib import Path

__all__ = ["MemoryMeter", "peak_memory", "reset_peak_memory"]

_RESET_PEAK = "5"  # what proc(5) has for it


def peak_memory() -> int | None:
    """The most bytes since the start, or since the last reset; None where nobody counts them."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak_memory() -> bool:
    """Let the peak begin anew at what is in use now; False where the system cannot do that.

    What was freed goes back to the system first, which `keep_freed_memory` holds off.
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
    """The peak from its making on."""

    def __init__(self) -> None:
        self._before = 0 if reset_peak_memory() else peak_memory() or 0

    def read(self) -> int | None:
        """Bytes; None where nobody counts them, or only an earlier and higher peak is known."""
        peak = peak_memory()
        return peak if peak is not None and peak > self._before else None
