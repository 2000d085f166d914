"""More than 10,000 broken files: each is read, or refused by an error of the project's own tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = {
    "model": 2500,
    "shards": 1500,
    "adapter": 1300,
    "adapterhub": 300,
    "mlx": 300,
    "recipe": 600,
    "tokenizer": 2000,
    "gguf": 2000,
    "inspected": 500,
}
# Threads take address space, and more of it the more cores there are.
ONE_THREAD = {
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
EXTRAS = {"tokenizer": "tokenizers", "gguf": "gguf"}


def test_there_are_ten_thousand_files() -> None:
    assert sum(COUNTS.values()) >= 10_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by setrlimit and /proc")
@pytest.mark.parametrize(("reader", "count"), COUNTS.items())
def test_a_broken_file_is_read_or_refused_and_does_no_harm(
    reader: str, count: int, tmp_path: Path
) -> None:
    if reader in EXTRAS:
        pytest.importorskip(EXTRAS[reader], reason="needs an extra")
        pytest.importorskip("tokenizers", reason="needs the text extra")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.readers", reader, str(count), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"file {lines[-1:]} ended the process:\n{ran.stderr[-3000:]}"
    failed = [place for place, line in enumerate(lines) if line.startswith("FAILED")]
    told = ["\n".join(lines[max(0, place - 1) : place + 40]) for place in failed[:3]]
    assert not failed, f"{len(failed)} of {count} files:\n" + "\n".join(told)
    read, refused = (int(part.split()[-1]) for part in lines[-1].split(","))
    assert read + refused == count
    assert min(read, refused) > count // 100  # it breaks files, and does not only destroy them
