"""The training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import keep_freed_memory
from tinygrad_peft.errors import ConfigError, TrainingError
from tinygrad_peft.nn.layers import seed_dropout
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.nn.optim import Optimizer, clip_grad_norm
from tinygrad_peft.peft import PeftModel, hookspecs
from tinygrad_peft.train.checks import check_examples
from tinygrad_peft.train.config import TrainConfig, make_optimizer, make_schedule, peak_rates
from tinygrad_peft.train.data import Encoded
from tinygrad_peft.train.evaluate import Metrics, evaluate, targets
from tinygrad_peft.train.events import (
    Evaluated,
    Event,
    Observer,
    Outcome,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
)
from tinygrad_peft.train.interrupt import Interrupts
from tinygrad_peft.train.keep import Keeper, Save
from tinygrad_peft.train.memory import peak_memory
from tinygrad_peft.train.result import Finish, TrainResult
from tinygrad_peft.train.steps import Step, Tally, count_steps, steps
from tinygrad_peft.train.trainable import Trainable

__all__ = ["train"]


def train(
    model: Trainable,
    train_set: Sequence[Encoded],
    eval_set: Sequence[Encoded] | None,
    config: TrainConfig,
    *,
    pad_id: int,
    out: Path | None = None,
    save: Save | None = None,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train the parameters of `model` that require a gradient; two equal calls give equal bits.

    Every `eval_every` steps, or at each epoch's end, and at the very end, the model is tried on
    `eval_set`. When it is the best so far (by accuracy, then loss; a language model by loss), and
    without an `eval_set` each time, `save` writes it into a new folder, whose files then replace
    those in `out`. In the end the model has its best weights, or without an `eval_set` its last.

    Ctrl-C ends the run after the step under way and saves the weights as they are then: in `out`,
    or in `out`/interrupted where `out` has a checkpoint of this run. The model keeps them. A second
    Ctrl-C, or one while they are being saved, is KeyboardInterrupt.

    A step is over `accumulation` batches, and its gradient is that of the mean loss over all labels
    in them: what one batch of all of them would give, and not a mean of the batches' means. The
    model is left in evaluation mode.

    After the observers, the plugins of an adapted model hear of each step by their hook
    `step_ended`.

    Raises:
        DataError: examples that cannot be used.
        ConfigError: only one of `out` and `save` is given.
        TokenError: ids or labels that the model does not have.
        TrainingError: no parameter requires a gradient; or a loss, gradient or weight is no longer
            finite, and the model has its last good weights again.
    """
    if (out is None) != (save is None):
        raise ConfigError("out and save go together: a folder, and what writes the weights there")
    limit = config.max_length
    classes = check_examples(train_set, "training", max_length=limit, model=model)
    if eval_set is not None:
        check_examples(eval_set, "evaluation", classes=classes, max_length=limit, model=model)
    optimizer = make_optimizer(config, model)
    run = _Run(
        model=model,
        train_set=train_set,
        eval_set=eval_set,
        config=config,
        pad_id=pad_id,
        optimizer=optimizer,
        keeper=Keeper(optimizer.parameters, out, save),
        observers=[*observers, *_plugin_observers(model)],
    )
    keep_freed_memory()
    # What overflows is found and told by the run itself, with the step that it happened in.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return run.fit()


@dataclass(kw_only=True)
class _Run:
    """One call of `train`, and how far it is."""

    model: Trainable
    train_set: Sequence[Encoded]
    eval_set: Sequence[Encoded] | None
    config: TrainConfig
    pad_id: int
    optimizer: Optimizer
    keeper: Keeper
    observers: Sequence[Observer]

    losses: list[float] = field(default_factory=list)  # of each step
    evaluations: list[Evaluated] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        _, self.root = next(self.model.named_modules())
        self.total = count_steps(self.config, len(self.train_set))
        self.schedule = make_schedule(self.config, self.total)
        self.peak = self.optimizer.lr
        self.rates = tuple(sorted(set(peak_rates(self.config, self.model).values())))
        self.max_norm = self.config.max_grad_norm or math.inf
        self.trainable = count_elements(self.optimizer.parameters)
        self.parameters = count_elements(self.model.parameters())

    @property
    def done(self) -> int:
        """How many steps were made."""
        return len(self.losses)

    # ---------- the loop ----------

    def fit(self) -> TrainResult:
        """Start, make the steps, and end in one of three ways."""
        outcome: Finish = "finished"
        self._start()
        with Interrupts() as interrupts:
            try:
                self._make_steps(interrupts)
            except TrainingError:
                self._end("diverged")
                raise
            except KeyboardInterrupt:
                if interrupts.insistent:
                    raise
                outcome = "interrupted"
                self.keeper.write_beside()
        if outcome == "finished":
            self.keeper.restore()
        self._end(outcome)
        return self._result(outcome)

    def _make_steps(self, interrupts: Interrupts) -> None:
        for step in steps(self.config, self.train_set, self.pad_id):
            with interrupts.shield():
                self._make(step)
            if self._is_due(step):
                self._assess(step, interrupts)

    def _is_due(self, step: Step) -> bool:
        """Whether the weights are to be tried, and kept if good, after this step."""
        every = self.config.eval_every
        return self.done == self.total or (self.done % every == 0 if every else step.ends_epoch)

    # ---------- a step ----------

    def _make(self, step: Step) -> None:
        started = time.perf_counter()
        lr = self.optimizer.lr = self.peak * self.schedule(self.done)
        loss = self._accumulate(step)
        norm = clip_grad_norm(self.optimizer.parameters, self.max_norm)
        if not math.isfinite(norm):
            raise self._diverged(f"the norm of the gradient is {norm}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        seconds = time.perf_counter() - started
        self.tally.add(step, seconds)
        self._emit(
            StepEnded(
                model=self.root,
                step=self.done,
                total_steps=self.total,
                epoch=step.epochs_seen,
                loss=loss,
                lr=lr,
                grad_norm=norm,
                tokens=step.tokens,
                seconds=seconds,
            )
        )

    def _accumulate(self, step: Step) -> float:
        """Add up the gradients of the mean loss over all labels of the step; that loss."""
        wanted = [targets(batch) for batch in step.batches]
        total = sum(count for _, count in wanted)
        loss = 0.0
        for batch, (labels, count) in zip(step.batches, wanted, strict=True):
            part = self.model.loss(
                batch.input_ids,
                labels,
                batch.attention_mask,
                label_smoothing=self.config.label_smoothing,
            )
            if not math.isfinite(part.item()):
                raise self._diverged(f"the loss is {part.item()}", step)
            part.backward(np.asarray(count / total))
            loss += part.item() * count / total
        return loss

    def _diverged(self, what: str, step: Step) -> TrainingError:
        place = f"epoch {step.epoch}, {step.numbers}, learning rate {self.optimizer.lr:.3g}"
        return self._stopped(f"{what} in step {self.done + 1} ({place})")

    def _stopped(self, what: str) -> TrainingError:
        """The error, after the model has been given its last good weights again."""
        self.optimizer.zero_grad()
        self.keeper.restore()
        return TrainingError(f"training stopped: {what}; {self.keeper.whereabouts()}")

    # ---------- an evaluation ----------

    def _assess(self, step: Step, interrupts: Interrupts) -> None:
        """Try the weights, and keep them if they are the best so far."""
        if not self.keeper.are_finite():
            raise self._stopped(f"the weights are not finite after step {self.done}")
        event = self._evaluate(step, self.eval_set) if self.eval_set else None
        with interrupts.shield():
            if event is None or event.is_best:
                self.keeper.keep(step=self.done)
            if event is not None:
                self.evaluations.append(event)
                self._emit(event)

    def _evaluate(self, step: Step, eval_set: Sequence[Encoded]) -> Evaluated:
        started = time.perf_counter()
        metrics = evaluate(
            self.model, eval_set, batch_size=self.config.batch_size, pad_id=self.pad_id
        )
        self.model.train()
        if not math.isfinite(metrics.loss):
            raise self._stopped(f"the evaluation loss is {metrics.loss} after step {self.done}")
        return Evaluated(
            step=self.done,
            epoch=step.epochs_seen,
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            perplexity=metrics.perplexity,
            seconds=time.perf_counter() - started,
            is_best=self.best is None or _score(metrics) > _score(self.best),
        )

    @property
    def best(self) -> Evaluated | None:
        """The evaluation of the weights that are kept."""
        return next((e for e in reversed(self.evaluations) if e.is_best), None)

    # ---------- telling ----------

    def _start(self) -> None:
        seed_dropout(self.root, self.config.seed)
        self.optimizer.zero_grad()
        self.model.train()
        self._emit(
            TrainingStarted(
                steps=self.total,
                epochs=self.config.epochs,
                train_examples=len(self.train_set),
                eval_examples=len(self.eval_set or ()),
                trainable_parameters=self.trainable,
                total_parameters=self.parameters,
            )
        )

    def _end(self, outcome: Outcome) -> None:
        self.model.eval()
        self._emit(
            TrainingEnded(
                outcome=outcome,
                step=self.done,
                seconds=time.perf_counter() - self.started,
                tokens_per_second=self.tally.tokens_per_second,
                saved_to=self.keeper.saved_to,
            )
        )

    def _result(self, outcome: Finish) -> TrainResult:
        return TrainResult(
            outcome=outcome,
            steps=self.done,
            rates=self.rates,
            losses=tuple(self.losses),
            evaluations=tuple(self.evaluations),
            best=self.best,
            seconds=time.perf_counter() - self.started,
            tokens=self.tally.tokens,
            tokens_per_second=self.tally.tokens_per_second,
            padding_share=self.tally.padding_share,
            peak_memory=peak_memory(),
            trainable_parameters=self.trainable,
            total_parameters=self.parameters,
            saved_to=self.keeper.saved_to,
        )

    def _emit(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


def _plugin_observers(model: Trainable) -> Iterator[Observer]:
    """What tells the plugins of an adapted model of each step."""
    if not isinstance(model, PeftModel):
        return
    host = model.host

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            host.each(hookspecs.step_ended, event)

    yield observe


def _score(measured: Metrics | Evaluated) -> tuple[float, float]:
    """The higher the better: accuracy, then loss; the loss alone of a language model."""
    return measured.accuracy or 0.0, -measured.loss
