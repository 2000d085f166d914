"""Write JSON."""

import json
from pathlib import Path

__all__ = ["write_json"]


def write_json(path: Path, value: object) -> None:
    """Write a JSON value on lines of their own, in ASCII, as transformers and PEFT do."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
