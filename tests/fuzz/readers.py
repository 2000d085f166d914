"""Every reader of files, tried on broken ones: `python -m tests.fuzz.readers READER COUNT FOLDER`.

It runs in a process of its own, whose memory is limited, and prints the number of each file before
it is read and what went wrong with it: anything but success or an error of the project's own tree.
"""

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

from tests.fuzz.mutation import mutated, mutated_json, mutated_safetensors
from tests.fuzz.samples import SAMPLES, Sample
from tinygrad_peft.errors import TinygradPeftError

MEMORY = 1 << 29  # bytes more than the process has when it begins
SECONDS = 5.0  # for one file
LONGEST_MESSAGE = 20_000

MUTATIONS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutated_json,
    ".safetensors": mutated_safetensors,
    ".gguf": mutated,
}


class TooSlowError(Exception):
    """Reading one file took longer than it may."""


@dataclass
class Outcomes:
    """The numbers of files read and refused."""

    read: int = 0
    refused: int = 0


def try_sample(sample: Sample, count: int, folder: Path) -> Outcomes:
    """Break one file of the sample in `count` ways, and read it each time."""
    outcomes = Outcomes()
    place = folder / "broken"
    originals = {name: (sample.folder / name).read_bytes() for name in sample.files}
    shutil.copytree(sample.folder, place)
    for number in range(count):
        print(number, flush=True)
        rng = random.Random(f"{sample.name} {number}")  # noqa: S311 - the same files every time
        name = rng.choice(sample.files)
        broken = MUTATIONS[Path(name).suffix](originals[name], rng)
        (place / name).write_bytes(broken)
        try_once(sample, place, outcomes)
        (place / name).write_bytes(originals[name])
    return outcomes


def try_once(sample: Sample, place: Path, outcomes: Outcomes) -> None:
    """Read the folder, and print what should not have happened."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        sample.read(place)
        outcomes.read += 1
    except TinygradPeftError as error:
        outcomes.refused += 1
        if len(str(error)) > LONGEST_MESSAGE:
            print(f"FAILED: a message of {len(str(error))} characters: {str(error)[:300]}")
    except BaseException:  # noqa: BLE001 - a panic of compiled code is not an Exception
        print(f"FAILED: {traceback.format_exc()}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory() -> None:
    """Let the process have little more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _too_slow(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TooSlowError(f"more than {SECONDS} s")


def main(arguments: Sequence[str]) -> None:
    """Try one sample."""
    name, count, folder = arguments
    sample = SAMPLES[name](Path(folder) / "sample")
    sample.read(sample.folder)  # what is imported when it is used is there before the limit
    limit_memory()
    signal.signal(signal.SIGALRM, _too_slow)
    outcomes = try_sample(sample, int(count), Path(folder))
    print(f"read {outcomes.read}, refused {outcomes.refused}")


if __name__ == "__main__":
    main(sys.argv[1:])
