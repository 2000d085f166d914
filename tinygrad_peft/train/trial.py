"""One contender's turn in a comparison."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tinygrad_peft.errors import TinygradPeftError, explained
from tinygrad_peft.nn import Transformer
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, config_to_dict, get_peft_model
from tinygrad_peft.train.comparison_result import Contender, Row
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.evaluation import evaluate
from tinygrad_peft.train.events import Evaluated, Event, StepEnded
from tinygrad_peft.train.loop import train
from tinygrad_peft.train.optimizers import peak_rates
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft.train.peak_memory import MemoryMeter
from tinygrad_peft.train.probe import probe
from tinygrad_peft.train.result import TrainResult

__all__ = ["Bench", "Turn", "Watcher", "run_trial"]


class Watcher:
    """Follows a comparison. A subclass overrides the methods it needs."""

    def started(self, turn: "Turn") -> None:
        """Start a contender's turn."""

    def trained(self, event: Event) -> None:
        """Observe the training of the contender whose turn it is."""

    def ended(self, row: Row) -> None:
        """End a contender's turn, with its row."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The model, data and settings that all contenders share."""

    model: Transformer
    train_set: EncodedData
    eval_set: EncodedData
    config: TrainConfig
    host: Host
    out: Path | None
    job: dict[str, object]
    watcher: Watcher


@dataclass(frozen=True)
class Turn:
    """A contender, its place from 1 to `count`, and its settings of training."""

    place: int
    count: int
    contender: Contender
    config: TrainConfig

    @property
    def folder(self) -> str:
        """The name of the folder for its files: the place, and the words of the label."""
        words = "".join(c if c.isalnum() or c in "._" else " " for c in self.contender.label)
        return "-".join([str(self.place), *words.lower().split()])


def run_trial(bench: Bench, turn: Turn) -> Row:
    """Give a contender its turn, and return its row, with the reason if it fails.

    Raises KeyboardInterrupt if Ctrl-C left nothing worth a row.
    """
    memory, trial = MemoryMeter(), _Trial(bench, turn)
    try:
        trial.run()
    except Exception as error:  # noqa: BLE001 - after any failure the others have their turn
        trial.row = replace(trial.row, outcome="failed", error=_explained(error))
    return replace(
        trial.row,
        losses=tuple(trial.losses),
        evaluations=tuple(trial.evaluations),
        peak_memory=memory.read(),
    )


class _Trial:
    """One contender's turn, and its results so far."""

    def __init__(self, bench: Bench, turn: Turn) -> None:
        self.bench = bench
        self.turn = turn
        self.row = Row(
            label=turn.contender.label,
            methods=tuple(_as_read(step) for step in turn.contender.recipe),
            outcome="interrupted",
        )
        self.losses: list[float] = []
        self.evaluations: list[Evaluated] = []

    def run(self) -> None:
        """Train or evaluate the contender."""
        if self.turn.contender.recipe:
            self._adapt()
        elif self.bench.model.classifier is not None:
            self._probe()
        else:
            self._evaluate()

    # ---------- a recipe ----------

    def _adapt(self) -> None:
        bench, recipe = self.bench, self.turn.contender.recipe
        peft = get_peft_model(bench.model, recipe, seed=self.turn.config.seed, host=bench.host)
        try:
            trainable, total = peft.get_nb_trainable_parameters()
            rates = tuple(sorted(set(peak_rates(self.turn.config, peft).values())))
            self.row = replace(self.row, trainable=trainable, total=total, rates=rates)
            self._read(self._train(peft))
        finally:
            peft.unload()

    def _train(self, peft: PeftModel) -> TrainResult:
        bench = self.bench
        config = replace(self.turn.config, save_every=0)  # a comparison is not resumed
        data, observers = (bench.train_set, bench.eval_set), [self._observe]
        if bench.out is None:
            return train(peft, *data, config, observers=observers)
        return train_into(
            bench.out / self.turn.folder,
            peft,
            *data,
            config,
            observers=observers,
            job={**bench.job, "label": self.row.label, "methods": self.row.methods},
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, StepEnded):
            self.losses.append(event.loss)
        elif isinstance(event, Evaluated):
            self.evaluations.append(event)
        self.bench.watcher.trained(event)

    def _read(self, result: TrainResult) -> None:
        best, saved, out = result.best, result.saved_to, self.bench.out
        self.row = replace(
            self.row,
            outcome=result.outcome,
            loss=best.loss if best else None,
            accuracy=best.accuracy if best else None,
            perplexity=best.perplexity if best else None,
            seconds=result.seconds - sum(e.seconds for e in result.evaluations),
            folder=str(saved.relative_to(out)) if saved and out else None,
        )

    # ---------- the frozen model ----------

    def _probe(self) -> None:
        bench = self.bench
        found = probe(
            bench.model,
            bench.train_set,
            bench.eval_set,
            batch_size=bench.config.batch_size,
        )
        self.row = replace(
            self.row,
            outcome="finished",
            loss=found.loss,
            accuracy=found.accuracy,
            trainable=found.trainable,
            total=count_elements(bench.model.parameters()),
            seconds=found.seconds,
        )

    def _evaluate(self) -> None:
        bench = self.bench
        size = bench.config.batch_size
        found = evaluate(bench.model, bench.eval_set, batch_size=size)
        self.row = replace(
            self.row,
            outcome="finished",
            loss=found.loss,
            perplexity=found.perplexity,
            trainable=0,
            total=count_elements(bench.model.parameters()),
            seconds=0.0,
        )


def _as_read(config: PeftConfig) -> dict[str, object]:
    """Return the settings as a file gives them back: with lists for tuples."""
    text = msgspec.json.encode(config_to_dict(config))
    return msgspec.json.decode(text, type=dict[str, object])


def _explained(error: Exception) -> str:
    if isinstance(error, TinygradPeftError):
        return explained(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {error}"
