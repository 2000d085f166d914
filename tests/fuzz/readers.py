"""Readers of files, tried on broken ones: `python -m tests.fuzz.readers NAME FIRST COUNT FOLDER`.

It runs in a process of its own, whose memory is limited, and prints the number of each file before
it is read and what went wrong with it: anything but success or an error of the project's own tree.
"""

import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.fuzz.mutation import mutated, mutated_json, mutated_lines, mutated_safetensors
from tests.fuzz.samples import SAMPLES, Sample
from tinygrad_peft.errors import TinygradPeftError

MEMORY = 1 << 29  # bytes of address space more than the process has when it begins
GROWTH = 200_000_000  # bytes of memory in use more than before the file
SECONDS = 5.0  # for one file
LONGEST_MESSAGE = 20_000

MUTATIONS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".safetensors": mutated_safetensors,
}


class TooSlowError(BaseException):
    """Reading one file took longer than it may; no reader takes it for an error of its own."""


@dataclass
class Outcomes:
    """The numbers of files read and refused."""

    read: int = 0
    refused: int = 0


def try_sample(sample: Sample, numbers: range, folder: Path) -> Outcomes:
    """Break one file of the sample in many ways, and read it each time."""
    outcomes = Outcomes()
    place = folder / "broken"
    originals = {name: (sample.folder / name).read_bytes() for name in sample.files}
    shutil.copytree(sample.folder, place)
    for number in numbers:
        print(number, flush=True)
        rng = random.Random(f"{sample.name} {number}")  # noqa: S311 - the same files every time
        name = rng.choice(sample.files)
        broken = MUTATIONS.get(Path(name).suffix, mutated)(originals[name], rng)
        (place / name).write_bytes(broken)
        try_once(sample, place, outcomes)
        (place / name).write_bytes(originals[name])
    return outcomes


def try_once(sample: Sample, place: Path, outcomes: Outcomes) -> None:
    """Read the folder, and print what should not have happened."""
    before = _most_memory()
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where no signal is heard
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        sample.read(place)
        outcomes.read += 1
    except TinygradPeftError as error:
        outcomes.refused += 1
        if len(str(error)) > LONGEST_MESSAGE:
            print(f"FAILED message: {len(str(error))} characters: {str(error)[:300]}")
    except TooSlowError:
        print(f"FAILED time: {traceback.format_exc()}")
    except BaseException:  # noqa: BLE001 - a panic of compiled code is not an Exception
        print(f"FAILED exception: {traceback.format_exc()}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    if (grown := _most_memory() - before) > GROWTH:
        print(f"FAILED memory: {grown:,} bytes more than before")


def limit_memory() -> None:
    """Let the process have little more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _most_memory() -> int:
    """Return the most memory that the process has had in use, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _too_slow(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TooSlowError(f"more than {SECONDS} s")


def main(arguments: Sequence[str]) -> None:
    """Try one sample."""
    name, first, count, folder = arguments
    sample = SAMPLES[name](Path(folder) / "sample")
    sample.read(sample.folder)  # what is imported when it is used is there before the limit
    limit_memory()
    signal.signal(signal.SIGALRM, _too_slow)
    outcomes = try_sample(sample, range(int(first), int(first) + int(count)), Path(folder))
    print(f"read {outcomes.read}, refused {outcomes.refused}")


if __name__ == "__main__":
    main(sys.argv[1:])
