"""The recipes that the demo compares: data, since no code of the core names a method."""

import tomllib
from importlib import resources
from typing import Literal

__all__ = ["demo_recipes"]


def demo_recipes(model: Literal["real", "offline"]) -> tuple[str, ...]:
    """Return the recipes for the real model, or for the small one, from recipes.toml."""
    text = resources.files("tinygrad_peft.cli.demo").joinpath("recipes.toml").read_text("utf-8")
    return tuple(tomllib.loads(text)[model])
