"""The settings of a generation."""

from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypedDict

import numpy as np

from tinygrad_peft.errors import ConfigError, failures, listed, mistyped
from tinygrad_peft.nn.config import TransformerConfig

__all__ = ["Generation", "GenerationSettings"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of `generate`.

    Attributes:
        max_new_tokens: the most tokens that a row gets, at least 1.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits /
            temperature).
        top_p: draw among the likeliest tokens whose probabilities reach this share (Holtzman et
            al. 2020, section 3.1); above 0, at most 1.
        stop_ids: tokens that end a row.
        pad_id: the token that a row goes on with after its end.
        seed: the same seed draws the same tokens.

    Raises ConfigError that lists every invalid setting.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: Collection[int] = ()
    pad_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := self._mistyped() or self._out_of_range():
            raise ConfigError(f"invalid Generation:\n{listed(problems)}")

    def _mistyped(self) -> list[str]:
        whole = {name: getattr(self, name) for name in ("max_new_tokens", "seed", "pad_id")}
        real = {"temperature": self.temperature, "top_p": self.top_p}
        if not isinstance(self.stop_ids, Collection):
            return [f"stop_ids: expected a collection of integers, got {self.stop_ids!r:.80}"]
        stops = {f"stop_ids[{place}]": token for place, token in enumerate(self.stop_ids)}
        return [
            *mistyped(whole | stops, Integral, "an integer"),
            *mistyped(real, Real, "a number"),
        ]

    def _out_of_range(self) -> list[str]:
        return failures(
            {
                f"max_new_tokens: expected at least 1, got {self.max_new_tokens}": (
                    self.max_new_tokens < 1
                ),
                f"temperature: expected a finite number of at least 0, got {self.temperature}": (
                    not 0 <= self.temperature < np.inf
                ),
                f"top_p: expected above 0 and at most 1, got {self.top_p}": not 0 < self.top_p <= 1,
                f"seed: expected at least 0, got {self.seed}": self.seed < 0,
            }
        )

    def check(self, config: TransformerConfig) -> None:
        """Raise ConfigError that lists what a model of that config cannot do."""
        size = config.vocab_size
        outside = sorted(token for token in {self.pad_id, *self.stop_ids} if not 0 <= token < size)
        wrong = {
            "the model has no language-model head": config.head != "lm" or not config.causal,
            f"stop_ids and pad_id: expected 0 to {size - 1}, got {outside}": bool(outside),
        }
        problems = [problem for problem, holds in wrong.items() if holds]
        if problems:
            raise ConfigError(f"the model cannot generate:\n{listed(problems)}")


class GenerationSettings(TypedDict, total=False):
    """The settings of a `Generation` as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: Collection[int]
    pad_id: int
    seed: int


def generation_of(given: Generation | None, settings: GenerationSettings) -> Generation:
    """Return the given settings, or make them of keyword arguments.

    Raises ConfigError for both at once, and TypeError for none.
    """
    if given is None:
        return Generation(**settings)
    if settings:
        raise ConfigError("generate: expected a Generation or its settings by keyword, got both")
    return given
