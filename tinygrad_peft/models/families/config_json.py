"""Read config.json into typed settings, with all its faults in one error."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from tinygrad_peft.errors import ConfigError, listed, nearest
from tinygrad_peft.nn.config import ProblemType

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Head",
    "Settings",
    "activation_name",
    "read_settings",
]

Head = Literal["lm", "classification", "none"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]

# Hugging Face has several names for one function; the first of each is written.
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

# Keys of any family that may be missing or null, but are not 0; of those of the last, too.
_ABOVE_ZERO = ("head_dim", "num_key_value_heads", "n_inner", "num_labels", "rope_theta", "factor")
_ROPE = ("rope_scaling", "rope_parameters")

# Keys with one supported value in every family.
_FIXED: Mapping[str, object] = {"quantization_config": None, "is_encoder_decoder": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of config.json that all families have; a family adds its own."""

    vocab_size: int
    architectures: list[str] | None = None
    id2label: dict[int, str] | None = None
    num_labels: int | None = None
    problem_type: ProblemType | None = None
    classifier_pooling: Literal["mean", "cls"] | None = None  # of a head as it was once written
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes' names in order; empty if they are only LABEL_0, LABEL_1, ..."""
        names = tuple(name for _, name in sorted((self.id2label or {}).items()))
        return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names

    def problems(self, head: Head) -> list[str]:  # noqa: ARG002 - families look at the head
        """List settings that contradict each other or are not supported."""
        labels = self.id2label or {}
        rules = {
            f"id2label: expected classes 0 to {len(labels) - 1}, got {sorted(labels)}": (
                sorted(labels) == list(range(len(labels)))
            ),
            f"num_labels: expected {len(labels)} as in id2label, got {self.num_labels}": (
                not labels or self.num_labels in (None, len(labels))
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
    """Read the settings of type `kind` in `raw`, and the head of its architecture.

    `fixed` are keys with one supported value; `architectures` are the supported classes of
    transformers, the default one first. All other keys are ignored: they are bookkeeping, or change
    nothing that is computed.

    Raises:
        ConfigError: a key that is missing, of the wrong type, or has an unsupported value.
    """
    values, problems = _convert(kind, raw)
    head = _head(raw.get("architectures"), architectures, problems)
    problems += _fixed_problems(raw, {**_FIXED, **fixed})
    problems += _activation_problems(raw)
    problems += _zero_problems(raw)
    settings = None if problems else kind(**values)
    problems += [] if settings is None else settings.problems(head)
    if settings is None or problems:
        raise ConfigError(f"invalid or unsupported settings:\n{listed(problems)}")
    return settings, head


def activation_name(activation: Activation) -> str:
    """Name an activation as config.json does."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def _convert(kind: type[Settings], raw: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Convert the fields that `raw` has, and list what is wrong with them."""
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
        f"{key}: only {_json(value)} is supported, got {_json(raw[key])}"
        for key, value in fixed.items()
        if key in raw and raw[key] != value
    ]


def _zero_problems(raw: Mapping[str, object], where: str = "") -> list[str]:
    """List zeros that would otherwise ask for the default, as a missing key does."""
    found = [
        f"{where}{key}: expected a number above 0, got {_json(raw[key])}"
        for key in _ABOVE_ZERO
        if isinstance(raw.get(key), int | float) and raw[key] == 0
    ]
    inner = ((key, raw.get(key)) for key in _ROPE) if not where else ()
    return found + [
        problem
        for key, settings in inner
        if isinstance(settings, dict)
        for problem in _zero_problems(settings, f"{key}: ")
    ]


def _activation_problems(raw: Mapping[str, object]) -> list[str]:
    return [
        f"{key}: expected one of {', '.join(ACTIVATIONS)}, got {_json(raw[key])}"
        f"{nearest(str(raw[key]), ACTIVATIONS, 1)}"
        for key in ("activation_function", "hidden_act")
        if key in raw and (not isinstance(raw[key], str) or raw[key] not in ACTIVATIONS)
    ]


def _head(named: object, known: Mapping[str, Head], problems: list[str]) -> Head:
    """Look up the head of the first architecture; the family's default if none is named."""
    default = next(iter(known))
    name = str(named[0]) if isinstance(named, list) and named else default
    if name not in known:
        problems.append(
            f"architectures: expected one of {', '.join(known)}, got {name}"
            f"{nearest(name, known, 1)}"
        )
    return known.get(name, known[default])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
