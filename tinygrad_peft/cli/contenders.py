"""Recipes to compare, as the command line names them.

    RECIPE [ @ lr=RATE][, label=NAME]        RECIPE: METHOD[ + METHOD]...

Spaces stand around the plus and the at sign; within a method, + joins the names of a list. What
stands in a method's {JSON} is never taken for either.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinygrad_peft.errors import ConfigError, hinted, listed
from tinygrad_peft.peft import Host, PeftConfig, config_to_dict, parse_method
from tinygrad_peft.train import Contender

__all__ = ["parse_contenders"]

_SEPARATOR = re.compile(r"\s+([+@])\s+")
_BEFORE_JSON = re.compile(r"\s*[^\s:{]+\s*:\s*(?=\{)")


@dataclass(frozen=True)
class _Parsed:
    """The parts of one --method."""

    recipe: tuple[PeftConfig, ...]
    lr: float | None
    label: str | None


def parse_contenders(specs: Sequence[str], host: Host) -> list[Contender]:
    """Return the contenders of a command line, with labels that distinguish them.

    A label that is not given is made of the methods' names, and of the settings in which methods of
    the same names differ.

    Raises ConfigError that lists every invalid recipe.
    """
    parsed, problems = [], []
    for spec in specs:
        try:
            parsed.append(_parse(spec, host))
        except ConfigError as error:
            problems.append(f"--method {spec!r}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return [
        Contender(label=label, recipe=p.recipe, lr=p.lr)
        for p, label in zip(parsed, _labels(parsed), strict=True)
    ]


# ---------- parsing ----------


def _parse(spec: str, host: Host) -> _Parsed:
    texts, options = _split(spec)
    recipe = tuple(parse_method(text, host) for text in texts)
    values: dict[str, str] = {}
    for name, value in _pairs(options):
        if name in values:
            raise ConfigError(f"{name} is set twice after the @")
        values[name] = value
    unknown = [name for name in values if name not in ("lr", "label")]
    if unknown:
        problems = [name + close for name, close in hinted(unknown, ("lr", "label"))]
        raise ConfigError(f"unknown after the @:\n{listed(problems)}")
    if values.get("label") == "":
        raise ConfigError("the label after the @ is empty")
    return _Parsed(recipe, _rate(values.get("lr")), values.get("label"))


def _split(spec: str) -> tuple[list[str], str]:
    """Split into the methods' texts, and the text after the at sign."""
    texts, start, kind = [], 0, "+"
    while kind == "+":
        found = _SEPARATOR.search(spec, _end_of_json(spec, start))
        texts.append(spec[start : found.start() if found else None].strip())
        if found is None:
            return texts, ""
        start, kind = found.end(), found[1]
    return texts, spec[start:]


def _end_of_json(spec: str, start: int) -> int:
    """Return the end of the JSON of the method at `start`, or `start` if it has none."""
    opened = _BEFORE_JSON.match(spec, start)
    if opened is None:
        return start
    try:
        return json.JSONDecoder().raw_decode(spec, opened.end())[1]
    except ValueError:
        return len(spec)  # one broken method, which its parser reports


def _pairs(options: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, map(str.strip, options.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"after the @: expected lr=RATE or label=NAME, got {part!r}")
        yield name.strip(), value.strip()


def _rate(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ConfigError(f"lr: expected a number, got {text!r}") from None


# ---------- labels ----------


def _labels(parsed: Sequence[_Parsed]) -> list[str]:
    """Return the labels given, or else made. Raises ConfigError for two that are equal."""
    made = [_name(p) for p in parsed if p.label is None]
    labels = [
        p.label or (_name(p) if made.count(_name(p)) == 1 else _distinguished(p, parsed))
        for p in parsed
    ]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise ConfigError(
            f"two recipes are called {twice[0]!r}: give one another label, as in "
            "--method '... @ label=NAME'"
        )
    return labels


def _distinguished(parsed: _Parsed, others: Sequence[_Parsed]) -> str:
    """Return the methods' names, each with the settings in which recipes of these names differ."""
    alike = [p for p in others if p.label is None and _name(p) == _name(parsed)]
    parts = []
    for step, config in enumerate(parsed.recipe):
        own, *_ = values = [config_to_dict(p.recipe[step]) for p in (parsed, *alike)]
        differing = [key for key in own if any(v[key] != own[key] for v in values)]
        parts.append(" ".join([_method_name(config), *(f"{k}={_text(own[k])}" for k in differing)]))
    if parsed.lr is not None and any(p.recipe == parsed.recipe for p in alike if p is not parsed):
        parts[-1] += f" lr={parsed.lr:g}"
    return " + ".join(parts)


def _name(parsed: _Parsed) -> str:
    return " + ".join(map(_method_name, parsed.recipe))


def _method_name(config: PeftConfig) -> str:
    return config.peft_type.lower().replace("_", " ")


def _text(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
