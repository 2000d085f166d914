"""Many broken files for all readers: `python -m tests.fuzz.long_run COUNT [FIRST]`.

The files are numbered from FIRST, 0 by default: a number and a reader's name make the same file
every time. Prints each failure, and a table of their kinds; the exit status is 1 if there is any.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

__all__ = ["COUNTS", "ran"]

ROOT = Path(__file__).parents[2]
# Files for each reader where the tests try them all.
COUNTS = {
    "model": 2200,
    "shards": 1700,
    "adapter": 900,
    "adapterhub": 300,
    "mlx": 300,
    "recipe": 250,
    "tokenizer": 1500,
    "sentencepiece": 900,
    "gguf": 1800,
    "inspected": 250,
    "classified": 150,
    "continued": 80,
    "tables": 400,
    "broken_off": 80,
    "stopped": 150,
    "sentences": 200,
}
# Threads take address space, and more of it the more cores there are.
ONE_THREAD = {
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def ran(reader: str, first: int, count: int, folder: Path) -> tuple[int, list[str], str]:
    """Try a reader in a process of its own: its exit status, what it printed, and its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.readers", reader, str(first), str(count), str(folder)],
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def _try_all(reader: str, first: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield the outcomes of a reader, by kind; goes on behind a file that ends the process."""
    end = first + count
    while first < end:
        with tempfile.TemporaryDirectory() as folder:
            status, lines, errors = ran(reader, first, end - first, Path(folder))
        number = first
        for place, line in enumerate(lines):
            if line.isdecimal():
                number = int(line)
            elif line.startswith("FAILED"):
                kind = line.split()[1].rstrip(":")
                told = takewhile(lambda each: not each.isdecimal(), lines[place:])
                yield kind, f"{reader} {number}: " + "\n".join(told)
        if status == 0:
            read, refused = (int(part.split()[-1]) for part in lines[-1].split(","))
            yield from [("read", "")] * read + [("refused", "")] * refused
            return
        yield "crash", f"{reader} {number}: exit status {status}\n{errors[-3000:]}"
        first = number + 1


def main(arguments: Sequence[str]) -> int:
    """Try COUNT files, shared out among the readers as in the tests."""
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    share = count / sum(COUNTS.values())
    totals: Counter[str] = Counter()
    for reader, usual in COUNTS.items():
        files = -(-int(usual * share * 1000) // 1000) or 1
        found: Counter[str] = Counter()
        for kind, told in _try_all(reader, first, files):
            found[kind] += 1
            if told:
                print(f"{kind}: {told}", flush=True)
        totals += found + Counter(files=files)
        print(f"{reader}: files {first} to {first + files - 1}: {dict(found)}", flush=True)
    print(f"in all: {dict(totals)}")
    return 1 if totals.keys() - {"files", "read", "refused"} else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
