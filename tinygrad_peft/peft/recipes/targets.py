"""Resolving targets: the modules that a config names, and the problems with its names."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tinygrad_peft.errors import LISTED, nearest
from tinygrad_peft.models import equal_names
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.patterns import full_match, matches, named_by
from tinygrad_peft.peft.configs.targeted import NamedTargetsConfig, TargetedConfig, layer_patterns
from tinygrad_peft.peft.sites import Seam

__all__ = ["Targets", "find_targets"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Targets:
    """The modules that a config names in a model.

    by_entry: for each target entry, the paths that it names and that no setting excludes.
    saved: the paths of the modules that `modules_to_save` names, and of modules below them.
    problems: entries that name nothing, and why.
    notes: the same for an adapter that is trained already, where they change nothing.
    """

    by_entry: dict[str, frozenset[str]]
    saved: frozenset[str]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> frozenset[str]:
        """The paths that any entry names."""
        return frozenset().union(*self.by_entry.values())


def find_targets(
    config: PeftConfig, seams: Sequence[Seam], model_type: str, *, loading: bool = False
) -> Targets:
    """Resolve the targets of `config` among the seams, with every entry that names nothing.

    While `loading`, one beside others is only noted: the file has no weights for it.
    """
    saved, problems = _find_saved(config.modules_to_save, seams)
    by_entry: dict[str, frozenset[str]] = {}
    if isinstance(config, NamedTargetsConfig):
        by_entry, more = _find_named(config, seams, model_type, saved, loading=loading)
        problems += more
    tied = _tied_paths(seams)
    if config.keeps_tied:
        saved |= {tied[path] for path in saved & tied.keys()}
        if loading:
            by_entry = {e: p | {tied[o] for o in p & tied.keys()} for e, p in by_entry.items()}
    parted = _parted(saved, frozenset().union(*by_entry.values()), tied, loading=loading)
    if not loading or not (by_entry or saved):
        return Targets(by_entry, saved, (*problems, *parted))
    return Targets(by_entry, saved, (), (*problems, *parted))


def _parted(
    saved: frozenset[str], targets: frozenset[str], tied: Mapping[str, str], *, loading: bool
) -> list[str]:
    """List the modules that would no longer share a weight, though only one is trained whole."""
    what = "they are parted, as in PEFT" if loading else "adapting only one would untie them"
    return [
        f"{path} shares its weight with {tied[path]}: {what}"
        for path in sorted((saved | targets) & tied.keys())
        if not {path, tied[path]} <= saved
    ]


def _find_named(
    config: NamedTargetsConfig,
    seams: Sequence[Seam],
    model_type: str,
    saved: frozenset[str],
    *,
    loading: bool,
) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Resolve each entry of the targets to paths, and list the entries' problems."""
    usual = config.usual_targets.get(model_type)
    targets = usual if config.target_modules is None else config.target_modules
    entries = _matching(targets, seams)
    if not entries:
        known = ", ".join(sorted(config.usual_targets)) or "none"
        family = model_type or "of no family"
        why = f"usual targets are known for {known}, and this model is {family}"
        return {}, [f"target_modules: missing ({why})"]
    numbers = _layer_numbers(config, seams)
    absent = _absent_layers(config, set(numbers.values()) - {None})
    layers = None if absent and not loading else _layers(config)
    unwanted = _matching(config.exclude_modules, seams)
    problems = absent + [
        f"exclude_modules: {why}" for why in _unmatched(config.exclude_modules, unwanted, seams)
    ]
    problems += _unmatched(targets, entries, seams)
    excluded_paths = frozenset().union(*unwanted.values())
    by_entry: dict[str, frozenset[str]] = {}
    excluded: list[str] = []
    for entry, named in entries.items():
        barred = {p: _bar(entry, p, excluded_paths, layers, numbers, saved) for p in named}
        left = frozenset(path for path, bar in barred.items() if bar is None)
        bars = " and ".join(sorted({str(bar) for bar in barred.values()}))
        if left:
            by_entry[entry] = left
        elif named:
            why = f"{entry!r}: all of its {len(named)} modules are excluded by {bars}"
            (excluded if bars == "exclude_modules" else problems).append(why)
    # Excluding one entry of several is valid: PEFT writes it for "all-linear".
    return by_entry, problems if by_entry else problems + excluded


def _matching(
    names: str | Sequence[str] | None, seams: Sequence[Seam]
) -> Mapping[str, Sequence[str]]:
    """Map each entry to the paths that it names."""
    if names == ALL_LINEAR:
        return {ALL_LINEAR: [s.path for s in seams if _is_linear(s)]}
    if isinstance(names, str):
        return {names: [s.path for s in seams if matches(s.path, names)]}
    return named_by(names or (), (s.path for s in seams))


def _is_linear(seam: Seam) -> bool:
    return isinstance(seam.module, Affine) and not seam.is_head


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
    numbered = [rf"(?:^|.*?\.)(?:{pattern})\.(?P<n>\d+)\..*" for pattern in patterns]
    found = {
        s.path: next(
            filter(None, (full_match(e, f"{n}.") for e in numbered for n in equal_names(s.path))),
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
    containers = dict.fromkeys(path for seam in seams for path in _upwards(seam.path))
    found = named_by(names, containers)
    problems = [f"modules_to_save: {why}" for why in _unmatched(names, found, seams)]
    for name, paths in found.items():
        roots = tuple(f"{path}." for path in paths)
        below = [s for s in seams if f"{s.path}.".startswith(roots)]
        if roots and not any(True for s in below for _ in s.module.own_parameters()):
            problems.append(f"modules_to_save: {name!r} has no weights to train")
        saved |= {s.path for s in below}
    return frozenset(saved), problems


def _upwards(path: str) -> Iterator[str]:
    """Yield the paths of everything that contains a module, and its own."""
    return accumulate(path.split("."), "{}.{}".format)


def _unmatched(
    names: str | Sequence[str] | None, found: Mapping[str, Sequence[str]], seams: Sequence[Seam]
) -> list[str]:
    """List the entries that match nothing, with the nearest names."""
    absent = [entry for entry, paths in found.items() if not paths]
    paths = [s.path for s in seams]
    if isinstance(names, str) and names != ALL_LINEAR:
        named = absent and named_by([names], paths)[names]
        hint = f"; for modules of that name write [{names!r:.200}]" if named else ""
        return [f"the expression {entry!r:.200} matches no whole path{hint}" for entry in absent]
    return [
        f"{entry!r:.200} matches no module{_near(entry, paths) if place < LISTED else ''}"
        for place, entry in enumerate(absent)
    ]


def _near(entry: str, paths: Sequence[str]) -> str:
    """Suggest ends of paths with as many segments as the entry, or else whole paths."""
    length = entry.count(".") + 1
    names = {".".join(path.split(".")[-length:]) for path in paths}
    return nearest(entry, sorted(n for n in names if not n[0].isdigit())) or nearest(entry, paths)


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
