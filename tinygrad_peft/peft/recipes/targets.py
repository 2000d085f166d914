"""Resolving targets: the modules that a config names, and the problems with its names."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tinygrad_peft.errors import nearest
from tinygrad_peft.models import equal_names
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig, TargetedConfig, layer_patterns
from tinygrad_peft.peft.sites import Seam

__all__ = ["Targets", "find_targets", "matches"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Targets:
    """The modules that a config names in a model.

    by_entry: for each target entry, the paths that it names and that no setting excludes.
    saved: the paths of the modules that `modules_to_save` names, and of modules below them.
    problems: entries that name nothing, and why.
    """

    by_entry: dict[str, frozenset[str]]
    saved: frozenset[str]
    problems: tuple[str, ...]

    @property
    def paths(self) -> frozenset[str]:
        """The paths that any entry names."""
        return frozenset().union(*self.by_entry.values())


def matches(path: str, pattern: str | Sequence[str]) -> bool:
    """Tell whether a regular expression matches the whole path, or a list names it.

    With the family's prefix or without, it is the same path.
    """
    names = equal_names(path)
    if isinstance(pattern, str):
        return any(re.fullmatch(pattern, each) for each in names)
    return any(each == name or each.endswith(f".{name}") for each in names for name in pattern)


def find_targets(config: PeftConfig, seams: Sequence[Seam], model_type: str) -> Targets:
    """Resolve the targets of `config` among the seams, with every entry that names nothing."""
    saved, problems = _find_saved(config.modules_to_save, seams)
    by_entry: dict[str, frozenset[str]] = {}
    if isinstance(config, NamedTargetsConfig):
        by_entry, more = _find_named(config, seams, model_type, saved)
        problems += more
    tied = _tied_paths(seams)
    problems += [
        f"{path} shares its weight with {tied[path]}: adapting only one would untie them"
        for path in sorted(saved.union(*by_entry.values()) & tied.keys())
    ]
    return Targets(by_entry, saved, tuple(problems))


def _find_named(
    config: NamedTargetsConfig, seams: Sequence[Seam], model_type: str, saved: frozenset[str]
) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Resolve each entry of the targets to paths, and list the entries' problems."""
    entries = _entries(config.target_modules, config.usual_targets.get(model_type))
    if not entries:
        known = ", ".join(sorted(config.usual_targets)) or "none"
        family = model_type or "of no family"
        why = f"usual targets are known for {known}, and this model is {family}"
        return {}, [f"target_modules: missing ({why})"]
    numbers = _layer_numbers(config, seams)
    absent = _absent_layers(config, set(numbers.values()) - {None})
    layers = None if absent else _layers(config)
    unwanted = _entries(config.exclude_modules, None)
    unwanted_paths = {e: {s.path for s in _matching(p, seams)} for e, p in unwanted.items()}
    problems = absent + [
        f"exclude_modules: {_unmatched(entry, pattern, seams)}"
        for entry, pattern in unwanted.items()
        if not unwanted_paths[entry]
    ]
    excluded_paths = frozenset().union(*unwanted_paths.values())
    by_entry: dict[str, frozenset[str]] = {}
    excluded: list[str] = []
    for entry, pattern in entries.items():
        named = _matching(pattern, seams)
        barred = {
            s.path: _bar(entry, s.path, excluded_paths, layers, numbers, saved) for s in named
        }
        left = frozenset(path for path, bar in barred.items() if bar is None)
        bars = " and ".join(sorted({str(bar) for bar in barred.values()}))
        if left:
            by_entry[entry] = left
        elif not named:
            problems.append(_unmatched(entry, pattern, seams))
        else:
            why = f"{entry!r}: all of its {len(named)} modules are excluded by {bars}"
            (excluded if bars == "exclude_modules" else problems).append(why)
    # Excluding one entry of several is valid: PEFT writes it for "all-linear".
    return by_entry, problems if by_entry else problems + excluded


def _entries(
    names: str | Sequence[str] | None, usual: Sequence[str] | None
) -> dict[str, str | Sequence[str]]:
    """Map each entry to its pattern: a regular expression, or a list of one name."""
    names = usual if names is None else names
    if isinstance(names, str):
        return {names: names}
    return {name: (name,) for name in names or ()}


def _matching(pattern: str | Sequence[str], seams: Sequence[Seam]) -> list[Seam]:
    if pattern == ALL_LINEAR:
        return [s for s in seams if isinstance(s.module, Affine) and not s.is_head]
    return [s for s in seams if matches(s.path, pattern)]


def _bar(
    entry: str,
    path: str,
    excluded: Collection[str],
    layers: Sequence[int] | None,
    numbers: Mapping[str, int | None],
    saved: frozenset[str],
) -> str | None:
    """Return the setting that excludes a path that an entry matches, if any does."""
    if path in excluded:
        return "exclude_modules"
    # A whole path overrules the layers; "norm" names any norm, also in a class without a prefix.
    whole = path == entry or ("." in entry and entry in equal_names(path))
    if layers is not None and not whole and numbers[path] not in layers:
        return "layers_to_transform"
    return "modules_to_save" if path in saved else None


def _layers(config: PeftConfig) -> Sequence[int] | None:
    layers = config.layers_to_transform if isinstance(config, TargetedConfig) else None
    return (layers,) if isinstance(layers, int) else layers


def _layer_numbers(config: PeftConfig, seams: Sequence[Seam]) -> dict[str, int | None]:
    """Map each path to the number of its layer, if it is in one."""
    patterns = layer_patterns(config)
    if not patterns:
        return {s.path: s.layer for s in seams}
    numbered = [re.compile(rf"(?:^|.*?\.)(?:{pattern})\.(?P<n>\d+)\.") for pattern in patterns]
    found = {
        s.path: next(
            filter(None, (e.match(f"{name}.") for e in numbered for name in equal_names(s.path))),
            None,
        )
        for s in seams
    }
    return {path: int(match["n"]) if match else None for path, match in found.items()}


def _absent_layers(config: PeftConfig, there: Collection[int | None]) -> list[str]:
    if (patterns := layer_patterns(config)) and not there:
        named = " or ".join(map(repr, patterns))
        return [f"layers_pattern: expected a layer's number after {named}, got none in any path"]
    return [
        f"layers_to_transform: the model has no layer {n} (it has {len(there)}, from 0)"
        for n in _layers(config) or ()
        if n not in there
    ]


def _find_saved(names: Sequence[str], seams: Sequence[Seam]) -> tuple[frozenset[str], list[str]]:
    saved: set[str] = set()
    problems = []
    for name in names:
        roots = tuple(f"{s.path}." for s in seams if matches(s.path, [name]))
        below = [s for s in seams if f"{s.path}.".startswith(roots)]
        if not roots:
            problems.append(f"modules_to_save: {_unmatched(name, [name], seams)}")
        elif not any(True for s in below for _ in s.module.own_parameters()):
            problems.append(f"modules_to_save: {name!r} has no weights to train")
        saved |= {s.path for s in below}
    return frozenset(saved), problems


def _unmatched(entry: str, pattern: str | Sequence[str], seams: Sequence[Seam]) -> str:
    """Return that an entry matches nothing, with the nearest names."""
    if isinstance(pattern, str) and pattern != ALL_LINEAR:
        named = any(matches(s.path, [entry]) for s in seams)
        hint = f"; for modules of that name write [{entry!r}]" if named else ""
        return f"the expression {entry!r} matches no whole path{hint}"
    length = entry.count(".") + 1
    names = {".".join(s.path.split(".")[-length:]) for s in seams}
    close = nearest(entry, sorted(n for n in names if not n[0].isdigit()))
    return f"{entry!r} matches no module{close or nearest(entry, [s.path for s in seams])}"


def _tied_paths(seams: Sequence[Seam]) -> dict[str, str]:
    """Map each path whose module shares a weight to another path that shares it."""
    first: dict[int, Seam] = {}
    tied: dict[str, str] = {}
    for seam in seams:
        for _, parameter in seam.module.own_parameters():
            other = first.setdefault(id(parameter), seam)
            if other is not seam:
                tied[seam.path], tied[other.path] = other.path, seam.path
    return tied
