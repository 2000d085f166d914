"""Which places a config's targets name, and what is wrong with those that name none."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinygrad_peft.errors import nearest
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft.config import PeftConfig, TargetedConfig
from tinygrad_peft.peft.sites import Seam

__all__ = ["Targets", "find_targets", "matches"]


@dataclass(frozen=True)
class Targets:
    """What a config names in a model.

    by_entry: for each target entry, the paths that it names.
    saved: the paths of the modules that `modules_to_save` names, those below them included.
    problems: entries that name nothing, and why.
    """

    by_entry: dict[str, frozenset[str]]
    saved: frozenset[str]
    problems: tuple[str, ...]

    @property
    def paths(self) -> frozenset[str]:
        """All paths that any entry names."""
        return frozenset().union(*self.by_entry.values())


def matches(path: str, pattern: str | Sequence[str]) -> bool:
    """Whether a path is named: by a regular expression as a whole, or by one of a list's names."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in pattern)


def find_targets(config: PeftConfig, seams: Sequence[Seam], model_type: str) -> Targets:
    """What `config` names among the seams, and every entry that names nothing."""
    saved, problems = _find_saved(config.modules_to_save, seams)
    if not isinstance(config, TargetedConfig):
        return Targets({}, saved, tuple(problems))
    entries = _entries(config, model_type)
    if entries is None:
        known = ", ".join(sorted(config.usual_targets)) or "none"
        problems.append(
            f"target_modules is needed: the usual ones are known for {known}, "
            f"and this model is {model_type or 'of no family'}"
        )
        return Targets({}, saved, tuple(problems))
    absent_layers = _layer_problems(config, seams)
    if absent_layers:
        return Targets({}, saved, (*problems, *absent_layers))
    by_entry = {name: _named(config, name, pattern, seams) for name, pattern in entries.items()}
    problems += [_unmatched(entry, seams) for entry, paths in by_entry.items() if not paths]
    tied = _tied_paths(seams)
    problems += [
        f"{path} shares its weight with {tied[path]}: adapting one of them alone would part them"
        for path in sorted(set().union(saved, *by_entry.values()) & tied.keys())
    ]
    return Targets(by_entry, saved, tuple(problems))


def _entries(config: TargetedConfig, model_type: str) -> dict[str, str | Sequence[str]] | None:
    """Each entry of the targets with what it matches by; None where the usual ones are unknown."""
    targets = config.target_modules
    if targets is None:
        targets = config.usual_targets.get(model_type)
    if targets is None:
        return None
    if isinstance(targets, str):
        return {targets: targets}
    return {name: (name,) for name in targets}


def _named(
    config: TargetedConfig, entry: str, pattern: str | Sequence[str], seams: Sequence[Seam]
) -> frozenset[str]:
    if pattern == "all-linear":
        found = (s for s in seams if isinstance(s.module, Affine) and not s.is_head)
    else:
        found = (s for s in seams if matches(s.path, pattern))
    return frozenset(s.path for s in found if _allowed(config, entry, s))


def _allowed(config: TargetedConfig, entry: str, seam: Seam) -> bool:
    if config.exclude_modules is not None and matches(seam.path, config.exclude_modules):
        return False
    layers = _layers(config)
    return layers is None or seam.path == entry or seam.layer in layers


def _layers(config: TargetedConfig) -> Sequence[int] | None:
    layers = config.layers_to_transform
    return (layers,) if isinstance(layers, int) else layers


def _layer_problems(config: TargetedConfig, seams: Sequence[Seam]) -> list[str]:
    there = {s.layer for s in seams} - {None}
    absent = [n for n in _layers(config) or () if n not in there]
    return [
        f"layers_to_transform: the model has no layer {n} (it has {len(there)})" for n in absent
    ]


def _find_saved(names: Sequence[str], seams: Sequence[Seam]) -> tuple[frozenset[str], list[str]]:
    saved: set[str] = set()
    problems = []
    for name in names:
        roots = [s.path for s in seams if matches(s.path, [name])]
        if not roots:
            problems.append(f"modules_to_save: {_unmatched(name, seams)}")
        saved |= {s.path for s in seams for r in roots if f"{s.path}.".startswith(f"{r}.")}
    return frozenset(saved), problems


def _unmatched(entry: str, seams: Iterable[Seam]) -> str:
    """That an entry names nothing, with the nearest names there are."""
    names = {".".join(s.path.split(".")[-n:]) for s in seams for n in (1, 2)}
    paths = {s.path for s in seams}
    close = nearest(entry, sorted(n for n in names if not n[0].isdigit())) or nearest(entry, paths)
    return f"{entry!r} matches no module that may be a target{close}"


def _tied_paths(seams: Sequence[Seam]) -> dict[str, str]:
    """The paths whose module shares a weight with another place, and that place."""
    first: dict[int, Seam] = {}
    tied: dict[str, str] = {}
    for seam in seams:
        for _, parameter in seam.module.own_parameters():
            other = first.setdefault(id(parameter), seam)
            if other is not seam:
                tied[seam.path], tied[other.path] = other.path, seam.path
    return tied
