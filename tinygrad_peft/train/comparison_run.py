"""A comparison: several recipes on one model and one data set, one after another."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tinygrad_peft.errors import ConfigError, PeftError, TinygradPeftError, listed
from tinygrad_peft.files import claimed
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, capture_seams, checked_targets, steps_of
from tinygrad_peft.train.comparison_result import (
    COMPARISON_FILE,
    Comparison,
    Contender,
    Row,
    write_comparison,
)
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.example_checks import check_examples
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft.train.log import versions
from tinygrad_peft.train.trial import Bench, Turn, Watcher, run_trial

__all__ = ["compare"]


def compare(
    model: Transformer,
    contenders: Sequence[Contender],
    train_set: EncodedData,
    eval_set: EncodedData,
    config: TrainConfig,
    *,
    host: Host | None = None,
    out: Path | None = None,
    job: Mapping[str, object] | None = None,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train each recipe on the same model, and leave the model as it was, bit for bit.

    The order makes no difference. Each recipe is trained at its own learning rate, else at the one
    in `config`, else at the rates of its methods. The model's classification head is trained
    with each recipe, as `modules_to_save`.

    A recipe that fails gets a row with the reason, and the next one has its turn. Ctrl-C ends the
    run with the rows so far, and a row for the recipe that it interrupted.

    With `out`, comparison.json is written there as each recipe ends, and each recipe's adapter, log
    and metrics into a folder of its own beside it. `job` adds facts to the file: numbers, text,
    lists, maps.

    Raises, before anything is trained:
        ConfigError: no contenders, empty or repeated labels, an invalid learning rate.
        PeftError: recipes that do not fit the model, all of them; or the model is adapted.
        DataError: examples that cannot be used.
    """
    host = host or Host.installed()
    ready = [
        dataclasses.replace(c, recipe=with_saved_head(tuple(c.recipe), model)) for c in contenders
    ]
    _check(model, ready, host)
    classes = check_examples(train_set, "training", max_length=config.max_length)
    check_examples(eval_set, "evaluation", classes=classes, max_length=config.max_length)
    bench = Bench(
        model=model,
        train_set=train_set,
        eval_set=eval_set,
        config=config,
        host=host,
        out=out,
        job=dict(job or {}),
        watcher=watcher or Watcher(),
    )
    turns = [
        Turn(place, len(ready), contender, _own_config(contender, config))
        for place, contender in enumerate(ready, start=1)
    ]
    return _Run(bench, turns).all()


# ---------- before ----------


def _check(model: Transformer, contenders: Sequence[Contender], host: Host) -> None:
    if not contenders:
        raise ConfigError("a comparison: expected at least one recipe, got none")
    labels = [contender.label for contender in contenders]
    twice = sorted({repr(label) for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"labels of recipes: got {', '.join(twice)} more than once")
    if not all(label.strip() for label in labels):
        raise ConfigError("labels of recipes: expected text, got an empty one")
    if model.adapted:
        raise PeftError("the model is already adapted: unload or merge that adapter first")
    problems = [_misfit(model, contender, host) for contender in contenders if contender.recipe]
    if any(problems):
        raise PeftError("invalid recipes:\n" + listed(filter(None, problems)))


def _misfit(model: Transformer, contender: Contender, host: Host) -> str:
    """Return the reason why a recipe cannot be applied to the model, or an empty text."""
    try:
        checked_targets(model, steps_of(contender.recipe), capture_seams(model), host)
    except TinygradPeftError as error:
        return f"{contender.label}: " + str(error).replace("\n", "\n  ")
    return ""


def _own_config(contender: Contender, config: TrainConfig) -> TrainConfig:
    if contender.lr is None:
        return config
    try:
        return dataclasses.replace(config, lr=contender.lr)
    except ConfigError as error:
        raise ConfigError(f"{contender.label}: {error}") from None


# ---------- one after another ----------


@dataclass
class _Run:
    """One call of `compare`, and its progress."""

    bench: Bench
    turns: Sequence[Turn]
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    def all(self) -> Comparison:
        """Give each contender its turn."""
        out = self.bench.out
        with nullcontext() if out is None else claimed(out):
            return self._all()

    def _all(self) -> Comparison:
        try:
            for turn in self.turns:
                self._add(turn)
                if self.interrupted:
                    break
        except KeyboardInterrupt:
            self.interrupted = True
            self._write()
        return self._comparison()

    def _add(self, turn: Turn) -> None:
        self.bench.watcher.started(turn)
        row = run_trial(self.bench, turn)
        self.rows.append(row)
        self.interrupted = row.outcome == "interrupted"
        self._write()
        self.bench.watcher.ended(row)

    def _write(self) -> None:
        if self.bench.out is not None:
            write_comparison(self.bench.out / COMPARISON_FILE, self._comparison())

    def _comparison(self) -> Comparison:
        settings: dict[str, object] = msgspec.to_builtins(self.bench.config)
        return Comparison(
            rows=tuple(self.rows),
            waiting=tuple(t.contender.label for t in self.turns[len(self.rows) :]),
            interrupted=self.interrupted,
            job=self.bench.job,
            config={name: value for name, value in settings.items() if name != "lr"},
            versions=versions(),
        )
