"""Entry points: the plugins that installed distributions declare."""

import importlib.metadata
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tinygrad_peft.errors import PluginError, hinted, listed
from tinygrad_peft.host.marks import GROUP
from tinygrad_peft.host.plugins import PluginInfo

__all__ = ["SWITCHED_OFF", "WITHOUT", "declared", "leaving_out", "loaded", "names_to_leave_out"]

WITHOUT = "TINYGRAD_PEFT_WITHOUT"  # the environment variable: names between commas
SWITCHED_OFF = "switched off"

Points = Sequence[importlib.metadata.EntryPoint]


def declared() -> Mapping[PluginInfo, Points]:
    """Map each plugin to its entry points, sorted by name; a name claimed twice has several."""
    by_name: dict[str, list[importlib.metadata.EntryPoint]] = defaultdict(list)
    for point in importlib.metadata.entry_points(group=GROUP):
        by_name[point.name].append(point)
    points = sorted(by_name.items())
    return {PluginInfo(name, *_distribution(claims[0])): claims for name, claims in points}


def names_to_leave_out(without: Iterable[str], known: Collection[str]) -> frozenset[str]:
    """Return the names to leave out, from the caller and the environment.

    Raises PluginError with every name that no installed plugin has, and for a single text.
    """
    if isinstance(without, str):
        raise PluginError(f"without: expected a list of names, got {without!r}")
    in_environment = filter(None, map(str.strip, os.environ.get(WITHOUT, "").split(",")))
    off = frozenset((*without, *in_environment))
    if unknown := sorted(off - set(known)):
        problems = [f"{name!r}{close}" for name, close in hinted(unknown, known)]
        raise PluginError(f"cannot switch off plugins that are not installed:\n{listed(problems)}")
    return off


@contextmanager
def leaving_out(names: Iterable[str]) -> Iterator[None]:
    """Leave plugins out within the block, in processes that it starts as well."""
    before = os.environ.get(WITHOUT)
    os.environ[WITHOUT] = ",".join(filter(None, (before, *names)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[WITHOUT]
        else:
            os.environ[WITHOUT] = before


def loaded(info: PluginInfo, points: Points) -> object:
    """Import a plugin. Raises PluginError if its name is claimed twice or the import fails."""
    claimants = sorted({f"{_distribution(p)[0]} ({p.value})" for p in points})
    if len(claimants) > 1:
        raise PluginError(
            f"entry point {info.name!r}: expected one distribution, got {' and '.join(claimants)}: "
            "uninstall one"
        )
    try:
        plugin: object = points[0].load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{info.title} ({points[0].value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return plugin


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution that declares an entry point."""
    return (point.dist.name, point.dist.version) if point.dist else ("an unknown distribution", "")
