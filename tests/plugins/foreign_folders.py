"""Helpers for the tests of adapters in other libraries' folders."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.peft.small import Snapshot, small
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError
from tinygrad_peft.models.inspection import Report
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, inspect_path

CONFIG = "adapter_config.json"
GOLDEN = Path(__file__).parents[1] / "golden"


@cache
def host() -> Host:
    """Return the installed host, once: finding plugins takes longer than most of the tests."""
    return Host.installed()


def read(
    model: Transformer, folder: Path, *, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    return PeftModel.from_pretrained(
        model, folder, host=host(), adapter_name=adapter_name, is_trainable=is_trainable
    )


def adapt(model: Transformer, recipe: PeftConfig | Sequence[PeftConfig]) -> PeftModel:
    return get_peft_model(model, recipe, host=host())


def inspect(path: Path, base: TransformerConfig | None = None) -> Report:
    return inspect_path(path, host(), base=base)


def settings(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return values


def refused(folder: Path, *parts: str, model: Transformer | None = None) -> str:
    """Assert that loading raises one error with all parts, and leaves the model unchanged."""
    model = small() if model is None else model
    before = Snapshot.of(model)
    with pytest.raises((CheckpointError, ConfigError, PeftError)) as caught:
        read(model, folder)
    before.assert_unchanged(model)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)
