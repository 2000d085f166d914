"""Thousands of broken files: each is read, or refused by an error of the project's own tree."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.long_run import COUNTS, ran

EXTRAS = {"gguf": "gguf", "classified": "click", "continued": "click"}
PLAIN = (
    "model",
    "shards",
    "adapter",
    "adapterhub",
    "mlx",
    "recipe",
    "inspected",
    "broken_off",
    "sentences",
)


def test_there_are_ten_thousand_files() -> None:
    assert sum(COUNTS.values()) >= 10_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by setrlimit and /proc")
@pytest.mark.parametrize(("reader", "count"), COUNTS.items())
def test_a_broken_file_is_read_or_refused_and_does_no_harm(
    reader: str, count: int, tmp_path: Path
) -> None:
    if reader not in PLAIN:
        pytest.importorskip("tokenizers", reason="needs the text extra")
        pytest.importorskip(EXTRAS.get(reader, "tokenizers"), reason="needs an extra")
    status, lines, errors = ran(reader, 0, count, tmp_path)
    assert status == 0, f"file {lines[-1:]} ended the process:\n{errors[-3000:]}"
    failed = [place for place, line in enumerate(lines) if line.startswith("FAILED")]
    told = ["\n".join(lines[max(0, place - 1) : place + 40]) for place in failed[:3]]
    assert not failed, f"{len(failed)} of {count} files:\n" + "\n".join(told)
    read, refused = (int(part.split()[-1]) for part in lines[-1].split(","))
    assert read + refused == count
    assert min(read, refused) > count // 100  # it breaks files, and does not only destroy them
