"""The peak of memory."""

import sys

import numpy as np
import pytest

from tinygrad_peft.train import peak_memory as module
from tinygrad_peft.train.peak_memory import MemoryMeter, peak_memory, reset_peak_memory

MEGABYTES = 64
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")


def use(megabytes: int) -> None:
    np.ones(megabytes * 250_000, np.float32)


@needs_linux
def test_a_meter_ignores_earlier_peaks() -> None:
    use(4 * MEGABYTES)
    high = peak_memory()
    meter = MemoryMeter()
    use(MEGABYTES)
    read = meter.read()
    assert high is not None
    assert read is not None
    assert MEGABYTES * 10**6 < read < high - 2 * MEGABYTES * 10**6


def test_without_a_reset_only_a_higher_peak_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = [900, 900, 1000]
    monkeypatch.setattr(module, "reset_peak_memory", lambda: False)
    monkeypatch.setattr(module, "peak_memory", lambda: peaks.pop(0))
    meter = MemoryMeter()
    assert [meter.read(), meter.read()] == [None, 1000]


def test_without_a_count_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reset_peak_memory", lambda: False)
    monkeypatch.setattr(module, "peak_memory", lambda: None)
    assert MemoryMeter().read() is None


def test_other_systems_cannot_reset_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not reset_peak_memory()
