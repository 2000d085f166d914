"""Reading config.json into typed settings, with all that is wrong in one error."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from tinygrad_peft.errors import ConfigError, listed, nearest

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Head",
    "Settings",
    "activation_name",
    "pooling_problems",
    "read_settings",
]

Head = Literal["lm", "classification", "none"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]

# Hugging Face has several names for one function; the first is the one that is written.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

# What every family shares and cannot do otherwise.
_FIXED: Mapping[str, object] = {"quantization_config": None, "is_encoder_decoder": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of config.json that all families have; a family adds its own."""

    vocab_size: int
    architectures: list[str] | None = None
    id2label: dict[int, str] | None = None
    num_labels: int | None = None
    classifier_pooling: Literal["mean", "cls"] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes' names in order; none where they are only LABEL_0, LABEL_1, ..."""
        names = tuple(name for _, name in sorted((self.id2label or {}).items()))
        return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names

    def problems(self, head: Head) -> list[str]:  # noqa: ARG002 - families look at the head
        """What does not fit together, or is not supported."""
        labels = self.id2label
        if labels is None:
            return []
        rules = {
            f"id2label names the classes {sorted(labels)}, expected 0 to {len(labels) - 1}": (
                sorted(labels) == list(range(len(labels)))
            ),
            f"num_labels is {self.num_labels}, and id2label names {len(labels)} classes": (
                self.num_labels in (None, len(labels))
            ),
        }
        return [problem for problem, holds in rules.items() if not holds]


S = TypeVar("S", bound=Settings)


def read_settings(
    kind: type[S],
    raw: Mapping[str, object],
    *,
    fixed: Mapping[str, object],
    architectures: Mapping[str, Head],
) -> tuple[S, Head]:
    """The settings of that kind in `raw`, and which head its architecture has.

    `fixed` are keys that may have one value only; `architectures` the classes of transformers that
    are understood, the default one first. Keys that are neither these nor settings keep books, or
    change nothing that is computed, and are passed over.

    Raises:
        ConfigError: a key that is missing, of the wrong type, or asks for what is not supported.
    """
    values, problems = _convert(kind, raw)
    head = _head(raw.get("architectures"), architectures, problems)
    problems += _fixed_problems(raw, {**_FIXED, **fixed})
    problems += _activation_problems(raw)
    settings = None if problems else kind(**values)
    problems += [] if settings is None else settings.problems(head)
    if settings is None or problems:
        raise ConfigError(f"config.json asks for what is not supported:\n{listed(problems)}")
    return settings, head


def pooling_problems(settings: Settings, head: Head) -> list[str]:
    """A decoder's classifier in transformers looks at the last token, which is not supported."""
    if head != "classification" or settings.classifier_pooling is not None:
        return []
    return [
        "a classifier on the last token is not supported: classifier_pooling must be mean or cls"
    ]


def activation_name(activation: Activation) -> str:
    """What config.json calls it."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def _convert(kind: type[Settings], raw: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """The values of the fields that `raw` has, and what is wrong with them."""
    values: dict[str, Any] = {}
    problems = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        try:
            if field.name in raw:
                values[field.name] = msgspec.convert(
                    raw[field.name], hints[field.name], str_keys=True
                )
            elif field.default is dataclasses.MISSING:
                problems.append(f"{field.name} is missing")
        except msgspec.ValidationError as error:
            problems.append(f"{field.name}: {error}")
    return values, problems


def _fixed_problems(raw: Mapping[str, object], fixed: Mapping[str, object]) -> list[str]:
    return [
        f"{key} is {_json(raw[key])}; only {_json(value)} is supported"
        for key, value in fixed.items()
        if key in raw and raw[key] != value
    ]


def _activation_problems(raw: Mapping[str, object]) -> list[str]:
    return [
        f"{key} is {_json(raw[key])}, expected one of {', '.join(ACTIVATIONS)}"
        f"{nearest(str(raw[key]), ACTIVATIONS, 1)}"
        for key in ("activation_function", "hidden_act")
        if key in raw and (not isinstance(raw[key], str) or raw[key] not in ACTIVATIONS)
    ]


def _head(named: object, known: Mapping[str, Head], problems: list[str]) -> Head:
    """The head of the first architecture; the family's usual one where none is named."""
    default = next(iter(known))
    name = str(named[0]) if isinstance(named, list) and named else default
    if name not in known:
        problems.append(
            f"architecture {name} is not supported, expected one of {', '.join(known)}"
            f"{nearest(name, known, 1)}"
        )
    return known.get(name, known[default])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
