"""Reports on the values of stored weights: numbers that are NaN or infinite."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from numpy import dtype

from tinygrad_peft.arrays import Array
from tinygrad_peft.models.gguf import read_gguf_arrays
from tinygrad_peft.models.hf import FLOATS, read_header
from tinygrad_peft.models.inspection import Report, collected
from tinygrad_peft.nn.finite import nonfinite

__all__ = ["with_value_problems"]


def with_value_problems(report: Report) -> Report:
    """Read the weights of a sound report's files as well, and add the values that are not finite.

    Each part of a report gets the problems of its own files.
    """
    parts = tuple(with_value_problems(part) for part in report.parts)
    if report.problems:
        return replace(report, parts=parts)
    seen = {part.path for part in report.parts}
    problems: list[str] = []
    for file in [] if report.path in seen else _files(report.path):
        problems += collected(problems, partial(_problems, file)) or []
    return replace(report, parts=parts, problems=problems)


def _files(path: Path) -> list[Path]:
    """List the files with weights that stand in a folder itself, or the file."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".gguf"))


def _problems(file: Path) -> list[str]:
    return nonfinite(_arrays(file))


def _arrays(file: Path) -> Iterator[tuple[str, Array]]:
    """Yield the float tensors of a file one at a time, in their own precision."""
    if file.suffix == ".gguf":
        yield from read_gguf_arrays(file)
        return
    for name, stored in read_header(file).items():
        if stored.dtype in FLOATS:
            yield name, stored.read(dtype("f8" if stored.dtype == "F64" else "f4"))
