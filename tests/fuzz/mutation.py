"""Files that are broken in ways that people and attackers break them, each from one seed."""

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["mutated", "mutated_json", "mutated_lines", "mutated_safetensors"]

# Numbers at the edges of the types that readers use, and texts that lead out of a folder.
NUMBERS = (0, 1, -1, 2, 3, 7, 127, 255, 256, 65_535, 10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**63)
HOSTILE: tuple[object, ...] = (
    *NUMBERS,
    *(-(2**31), 2**64, 10**30, -0.0, 0.5, 1e-45, 1e38, 1.7e308, None, True, False, [], {}, [[]]),
    *("", "x", "a" * 5_000, "../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\x", "NUL"),
    *(
        "\x00",
        "\x1b[31m",
        "\u202e",
        "é",
        "😀",
        "F32",
        "BF16",
        "I64",
        "llama",
        "LORA",
        "(a+)+$",
        "(",
    ),
    *("a{99999999999}", "all-linear", ["x"], [None], {"a": 1}, ["../x"], [0, 0], [2**40, 2**40]),
    *(r"(\w|\w\w|\.)+[!?]", r"(.|..|...)*(.|..)*[!?]", r".*.*.*.*.*.*[!?]", "(a|aa)+$", "a*" * 40),
    *([f"name{n}" for n in range(3_000)], {f"key{n}\x1b[31m": n for n in range(3_000)}),
    *(
        {"String": ""},
        {"Regex": "(a+)+$"},
        {"Regex": "a*a*(?<!b)"},
        [{"x": 1}] * 1_000,
        "a\n" * 900,
    ),
)
# What no encoder writes.
RAW = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5_000, b"[" * 5_000, b'{"a":' * 5_000),
    *(
        b'"\\ud800"',
        b'"\xff"',
        b"",
        b"}",
        b"]",
        b",",
        b'"',
        b"\x00",
        b"//",
        b'{"a":1,"a":2}',
        b"01",
    ),
)
PLACE = "@@a place@@"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, removed, repeated or added."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(BYTE_MUTATIONS)(data, rng)
    return data


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """JSON that is still some, mostly, and says something else."""
    if rng.random() < 0.1:
        return mutated(data, rng)
    value = json.loads(data)
    raw = None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        raw = _change(value, rng) or raw
    text = json.dumps(value).encode()
    if raw is not None:
        text = text.replace(json.dumps(PLACE).encode(), raw, 1)
    return _with_a_key_twice(text, rng) if rng.random() < 0.05 else text


def mutated_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON lines with another one among them, or many times the same."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    kind = rng.random()
    if kind < 0.2:
        return mutated(data, rng)
    if kind < 0.3:
        lines[place:place] = [lines[place]] * rng.choice((1, 100))
    lines[place] = mutated_json(lines[place], rng)
    return b"\n".join(lines)


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, another length of it, or other bytes."""
    kind = rng.random()
    if kind < 0.1:
        return mutated(data, rng)
    (size,) = struct.unpack("<Q", data[:8])
    header, arrays = data[8 : 8 + size], data[8 + size :]
    if kind < 0.2:
        told = rng.choice((*NUMBERS, size - 1, size + 1, 2**64 - 1)) % 2**64
        return struct.pack("<Q", told) + header + arrays
    if kind < 0.3:
        arrays = mutated(arrays, rng)
    header = mutated_json(header, rng)
    return struct.pack("<Q", len(header)) + header + arrays


# ---------- bytes ----------


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _write_number(data: bytes, rng: random.Random) -> bytes:
    layout = rng.choice(("<Q", "<I", "<H", "<B"))
    bits = 8 * struct.calcsize(layout)
    number = struct.pack(layout, (rng.choice(NUMBERS) - rng.randrange(2)) % 2**bits)
    place = rng.randrange(len(data) + 1)
    return data[:place] + number + data[place + len(number) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 64) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + rng.randrange(1, 64)] + data[start:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    added = rng.choice(RAW) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 16))
    return data[:start] + added + data[start:]


BYTE_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _write_number, _write_number, _write_number, _cut, _remove, _repeat, _insert),
)


# ---------- JSON ----------


def _change(value: Any, rng: random.Random) -> bytes | None:  # noqa: ANN401 - JSON of any kind
    """Change one place in `value`; what stands for raw bytes is given back."""
    holder, key = rng.choice(_places(value) or [({"": 0}, "")])
    kind = rng.randrange(9)
    if kind > 6:  # a value of the same type gets further
        alike = [value for value in HOSTILE if type(value) is type(holder[key])]
        holder[key] = copy.deepcopy(rng.choice(alike or HOSTILE))
    elif kind == 6 and isinstance(holder[key], list):
        holder[key] = [copy.deepcopy(v) for v in holder[key] * rng.choice((2, 3, 20))]
    elif kind == 0:
        holder[key] = PLACE
        return rng.choice(RAW)
    if kind == 1 and isinstance(holder, dict):
        holder.pop(key, None)
    elif kind == 2 and isinstance(holder, dict):
        holder[f"{key}{rng.choice(('', '2', 'x'))}"[rng.randrange(2) :]] = holder.pop(key, None)
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000)) + rng.choice((0, 1, -1, 0.5))
    else:
        holder[key] = copy.deepcopy(rng.choice(HOSTILE))  # it may be changed in its turn
    return None


def _places(value: object) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as what holds it and the key or index there."""
    items: Mapping[Any, object] = {}
    if isinstance(value, dict):
        items = value
    elif isinstance(value, list):
        items = dict(enumerate(value))
    return [p for key, inner in items.items() for p in ((value, key), *_places(inner))]


def _with_a_key_twice(text: bytes, rng: random.Random) -> bytes:
    places = [place for place, byte in enumerate(text) if byte == ord("{")]
    if not places:
        return text
    place = rng.choice(places) + 1
    return text[:place] + b'"twice":1,"twice":2,' + text[place:]
