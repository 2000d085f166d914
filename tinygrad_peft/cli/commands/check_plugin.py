"""`tinygrad-peft check-plugin`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import table

if TYPE_CHECKING:
    from tinygrad_peft.kit import MethodCheck, Outcome, PluginCheck

__all__ = ["check_plugin"]


@command
@click.argument("package")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Settings to test a method with: NAME:key=value,... Its defaults otherwise.",
)
def check_plugin(package: str, methods: tuple[str, ...]) -> Report:
    """Run the conformance suite on an installed plugin.

    PACKAGE is a distribution, an entry point or a module. The exit status is 1 if a promise is
    broken or anything else is wrong. Needs the extra "test".
    """
    from tinygrad_peft.kit import check_plugin as check

    checks = check(package, methods)
    sound = all(each.sound for each in checks)
    return Report(
        values={"sound": sound, "plugins": [_values(each) for each in checks]},
        lines=[line for each in checks for line in _lines(each)],
        status=0 if sound else 1,
    )


def _values(check: "PluginCheck") -> dict[str, object]:
    return {
        "plugin": check.plugin.name,
        "distribution": check.plugin.distribution,
        "version": check.plugin.version,
        "sound": check.sound,
        "problems": check.problems,
        "methods": [{"sound": m.sound, **dataclasses.asdict(m)} for m in check.methods],
    }


def _lines(check: "PluginCheck") -> Iterator[str]:
    yield f"{check.plugin.name}: {check.plugin.distribution} {check.plugin.version}"
    yield from (f"  wrong: {problem}" for problem in check.problems)
    for method in check.methods:
        yield from (f"  {line}" for line in _of_method(method))


def _of_method(method: "MethodCheck") -> Iterator[str]:
    outcomes = method.promises
    kept, skipped, broken = (
        (sum(counts) for counts in zip(*map(_counts, outcomes), strict=True))
        if outcomes
        else (0, 0, 0)
    )
    yield f"{method.name}: {kept} kept, {skipped} skipped, {broken} broken"
    yield from (f"  wrong: {problem}" for problem in method.problems)
    yield from (f"  note: {remark}" for remark in method.remarks)
    if outcomes:
        rows = [(o.promise, *map(str, _counts(o))) for o in outcomes]
        yield from (
            f"  {line}" for line in table([("promise", "kept", "skipped", "broken"), *rows])
        )
    for outcome in outcomes:
        if outcome.broken:
            yield from (f"  {outcome.promise}: {note}" for note in outcome.notes)


def _counts(outcome: "Outcome") -> tuple[int, int, int]:
    return outcome.kept, outcome.skipped, outcome.broken
