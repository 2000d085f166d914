"""Reading JSON strictly, and writing files that are either whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError

__all__ = ["read_json_object", "replacing"]


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises CheckpointError where there is none."""
    try:
        value: object = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - the name says that it is atomic
    finally:
        temporary.unlink(missing_ok=True)
