"""Read files strictly.

Reading any file ends with its content or a CheckpointError: no code in it runs, and memory stays
within a small multiple of its size.
"""

import hashlib
import json
import re
import stat
from collections import Counter
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError, shortened

__all__ = [
    "PICKLES",
    "decode_json_object",
    "is_plain_name",
    "read_bytes",
    "read_json_list",
    "read_json_object",
    "read_optional_object",
    "refuse_pickle",
    "sha256_of",
]

PICKLES = frozenset((".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"))
LARGEST_JSON = 100_000_000  # bytes; three times the size of the largest tokenizers
LARGEST_SETTINGS = 8_000_000  # bytes; Python takes 20 times that for objects of one key


def read_bytes(path: Path, most: int = LARGEST_JSON) -> bytes:
    """Read a whole file.

    Raises CheckpointError if it is missing, not a regular file, or larger than `most` bytes.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} cannot be read: expected a regular file")
        if found.st_size > most:
            raise CheckpointError(f"{path} has {found.st_size:,} bytes, expected at most {most:,}")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_json_object(path: Path) -> dict[str, object]:
    """Read the JSON object in a file. Raises CheckpointError for anything else."""
    return decode_json_object(read_bytes(path, LARGEST_SETTINGS), str(path))


def read_optional_object(path: Path) -> dict[str, object]:
    """Read the JSON object in a file: empty if the file is missing.

    Raises CheckpointError for anything else.
    """
    return read_json_object(path) if path.is_file() else {}


def read_json_list(path: Path) -> list[object]:
    """Read the JSON array in a file. Raises CheckpointError for anything else."""
    value = _decode_json(read_bytes(path), str(path))
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: expected a JSON array, got a {type(value).__name__}")
    return value


def decode_json_object(text: bytes, where: str) -> dict[str, object]:
    """Decode a JSON object strictly: no duplicate key, no NaN, no number out of range.

    Raises CheckpointError, which begins with `where`.
    """
    value = _decode_json(text, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value


def _decode_json(text: bytes, where: str) -> object:
    twice: list[str] = []
    try:
        value: object = msgspec.json.decode(text)
        # msgspec is the stricter of the two, but does not notice duplicate keys.
        json.loads(text.decode(), object_pairs_hook=lambda pairs: twice.extend(_repeated(pairs)))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if twice:
        names = shortened(", ".join(sorted(map(repr, set(twice)))))
        raise CheckpointError(f"{where} has duplicate keys: {names}")
    return value


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain_name(name: str) -> bool:
    """Tell whether a name is a plain file name on any system, without a path to elsewhere."""
    return re.fullmatch(r"\w[\w.-]{0,199}", name, re.ASCII) is not None


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError for a pickle, by its file name."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run any code, and is never read: save it as "
            "safetensors, with save_pretrained of transformers or PEFT, or safetensors.torch"
        )


def _repeated(pairs: list[tuple[str, object]]) -> list[str]:
    keys = [key for key, _ in pairs]
    return [] if len(set(keys)) == len(keys) else [k for k, n in Counter(keys).items() if n > 1]
