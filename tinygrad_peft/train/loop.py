"""The training loop."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import numpy as np

from tinygrad_peft.arrays import keep_freed_memory
from tinygrad_peft.errors import ConfigError, NumericalError, TrainingError
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.train.best_weights import BestWeights, Save
from tinygrad_peft.train.checkpoints import Checkpoints, stored_state
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.evaluation import Metrics, evaluate
from tinygrad_peft.train.events import Evaluated, Observer, Outcome, TrainingStarted
from tinygrad_peft.train.example_checks import check_examples
from tinygrad_peft.train.extra_losses import finite_values
from tinygrad_peft.train.fingerprint import run_facts
from tinygrad_peft.train.interrupt import Interrupts
from tinygrad_peft.train.optimizers import peak_rates
from tinygrad_peft.train.peak_memory import peak_memory
from tinygrad_peft.train.result import Finish, TrainResult
from tinygrad_peft.train.run_state import RunState
from tinygrad_peft.train.running_state import RUNNING_STATE, write_running_state
from tinygrad_peft.train.step_batches import StepBatches, count_steps, step_batches
from tinygrad_peft.train.stepper import Stepper
from tinygrad_peft.train.trainable import Trainable

__all__ = ["Run", "prepare_run", "train"]


def train(
    model: Trainable,
    train_set: EncodedData,
    eval_set: EncodedData | None,
    config: TrainConfig,
    *,
    out: Path | None = None,
    save: Save | None = None,
    observers: Sequence[Observer] = (),
    resume: bool | Path = False,
) -> TrainResult:
    """Train the parameters of `model` that require a gradient; two equal calls give equal bits.

    Every `eval_every` steps, or at the end of each epoch, and at the very end, the model is tried
    on `eval_set`. If it is the best so far (by accuracy, then loss; a language model by loss), and
    without an `eval_set` each time, `save` writes it into a new folder, whose files then replace
    those in `out`, with the running state of plugins beside them. In the end the model has its best
    weights, or without an `eval_set` its last.

    Ctrl-C, SIGTERM or SIGHUP ends the run after the current step and saves the weights as they are
    then: in `out`, or in `out`/interrupted if `out` has a checkpoint of this run. The model keeps
    them. A second signal, or one while they are being saved, is KeyboardInterrupt.

    With `out` the run writes checkpoints into `out`/checkpoints: every `save_every` steps or
    `save_minutes`, and when a signal ends it. With `resume` it goes on from the newest one, or from
    the folder of one of them, to the bits of an unbroken run. A finished run removes them.

    A step is over `accumulation` batches: see `Stepper.step`. The plugins of an adapted model add
    to its loss and observe it by their hooks (`train.hookspecs`). The model is left in evaluation
    mode.

    Raises:
        DataError: examples that cannot be used.
        ConfigError: only one of `out` and `save` is given; `out` has checkpoints of an unfinished
            run, and it is not resumed; or settings, data or weights are not those of the run to
            resume: lists them all.
        CheckpointError: there is no checkpoint to resume from, or only broken ones.
        TokenError: ids or labels outside the model.
        TrainingError: no parameter requires a gradient; or a loss, gradient or weight is not
            finite, and the model has its last good weights again.
    """
    run = prepare_run(
        model,
        train_set,
        eval_set,
        config,
        out=out,
        save=save,
        observers=observers,
        resume=resume,
    )
    result = run.fit()
    if not result.interrupted:
        run.discard_checkpoints()
    return result


def prepare_run(
    model: Trainable,
    train_set: EncodedData,
    eval_set: EncodedData | None,
    config: TrainConfig,
    *,
    out: Path | None,
    save: Save | None,
    observers: Sequence[Observer],
    resume: bool | Path,
) -> "Run":
    """Check everything, and make the run of `train`, whose checkpoints stay when it is finished.

    Raises what `train` raises before its first step.
    """
    if (out is None) != (save is None):
        raise ConfigError("out and save: expected both or neither (a folder, and its writer)")
    limit = config.max_length
    classes = check_examples(train_set, "training", max_length=limit, model=model)
    if eval_set is not None:
        check_examples(eval_set, "evaluation", classes=classes, max_length=limit, model=model)
    stored = stored_state(out, resume=resume)
    stepper = Stepper(
        model, config, total_steps=count_steps(config, len(train_set)), observers=observers
    )

    def save_all(folder: Path) -> None:
        assert save is not None, "out and save go together"
        save(folder)
        write_running_state(model, folder)

    best = BestWeights(stepper.optimizer.parameters, out, save_all, optional=(RUNNING_STATE,))
    state = RunState(stepper, best, run_facts(model, train_set, eval_set, config))
    checkpoints = Checkpoints(out, config)
    if stored is not None:
        state.restore(stored)
        checkpoints.discard_after(stepper.done)
    keep_freed_memory()
    return Run(state, train_set, eval_set, checkpoints)


@dataclass
class Run:
    """One call of `train`, and its progress."""

    state: RunState
    train_set: EncodedData
    eval_set: EncodedData | None
    checkpoints: Checkpoints

    def __post_init__(self) -> None:
        self.stepper, self.weights = self.state.stepper, self.state.best
        self.evaluations = self.state.evaluations
        self.model, self.config = self.stepper.model, self.stepper.config
        self.rates = tuple(sorted(set(peak_rates(self.config, self.model).values())))

    # ---------- the loop ----------

    def fit(self) -> TrainResult:
        """Start, make the steps, and end in one of three ways."""
        stopped_by: Signals | None = None
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
                stopped_by = interrupts.first
                self._write_checkpoint()
                self.weights.write_beside()
        if stopped_by is None:
            self._restore()
        outcome: Finish = "interrupted" if stopped_by else "finished"
        self._end(outcome)
        return self._result(outcome, stopped_by)

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints, and the weights that an interrupted part of the run has saved."""
        self.checkpoints.discard()
        self.weights.discard_interrupted()

    def _make_steps(self, interrupts: Interrupts) -> None:
        # The last step that is made already comes again, as its weights may still have to be tried.
        start = max(self.stepper.done - 1, 0)
        steps = step_batches(self.config, self.train_set, start=start)
        for number, step in enumerate(steps, start + 1):
            if number > self.stepper.done:
                with interrupts.shield():
                    self._make(step)
            if number > self.state.assessed and self._is_due(step):
                self._assess(step, interrupts)
            if number < self.stepper.total_steps and self.checkpoints.is_due(number):
                self._require_finite()
                with interrupts.shield():
                    self._write_checkpoint()

    def _make(self, step: StepBatches) -> None:
        try:
            self.stepper.step(*step.batches, epoch=step.epochs_seen)
        except TrainingError as error:
            raise self._stopped(f" in {step.place}: {error}") from None

    def _is_due(self, step: StepBatches) -> bool:
        """Return True if the weights are tried, and kept if good, after this step."""
        done, every = self.stepper.done, self.config.eval_every
        if done == self.stepper.total_steps:
            return True
        return done % every == 0 if every else step.ends_epoch

    def _write_checkpoint(self) -> None:
        self.checkpoints.write(self.stepper.done, self.state.write)

    def _require_finite(self) -> None:
        if not self.weights.are_finite():
            raise self._stopped(f": the weights are not finite after step {self.stepper.done}")

    def _stopped(self, why: str) -> TrainingError:
        """Give the model its last good weights again, and make the error that says so."""
        self._restore()
        return TrainingError(f"training stopped{why}; {self.weights.whereabouts()}")

    def _restore(self) -> None:
        with self.stepper.changing_weights():
            self.weights.restore()

    # ---------- an evaluation ----------

    def _assess(self, step: StepBatches, interrupts: Interrupts) -> None:
        """Try the weights, and keep them if they are the best so far."""
        done = self.stepper.done
        self._require_finite()
        event = self._evaluate(step, self.eval_set) if self.eval_set else None
        with interrupts.shield():
            if event is None or event.is_best:
                self.weights.keep(step=done)
            self.state.assessed = done
            if event is not None:
                self.evaluations.append(event)
                self.stepper.emit(event)

    def _evaluate(self, step: StepBatches, eval_set: EncodedData) -> Evaluated:
        started, done = time.perf_counter(), self.stepper.done
        try:
            metrics = evaluate(self.model, eval_set, batch_size=self.config.batch_size)
        except NumericalError as error:
            raise self._stopped(f": {error} after step {done}") from None
        # Overflows are found by their results.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"), no_grad():
            extra = self.stepper.ask_extra_losses()
        return Evaluated(
            step=done,
            epoch=step.epochs_seen,
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            perplexity=metrics.perplexity,
            seconds=time.perf_counter() - started,
            is_best=self.best is None or _score(metrics) > _score(self.best),
            extra_losses=self._finite(extra),
        )

    def _finite(self, extra: dict[str, Tensor]) -> dict[str, float]:
        try:
            return finite_values(extra)
        except TrainingError as error:
            raise self._stopped(f": {error} (after step {self.stepper.done})") from None

    @property
    def best(self) -> Evaluated | None:
        """The evaluation of the weights that are kept."""
        return next((e for e in reversed(self.evaluations) if e.is_best), None)

    # ---------- start and end ----------

    def _start(self) -> None:
        self.model.train()
        self.stepper.emit(
            TrainingStarted(
                steps=self.stepper.total_steps,
                epochs=self.config.epochs,
                train_examples=len(self.train_set),
                eval_examples=len(self.eval_set or ()),
                trainable_parameters=count_elements(self.stepper.optimizer.parameters),
                total_parameters=count_elements(self.model.parameters()),
                step=self.stepper.done,
            )
        )

    def _end(self, outcome: Outcome) -> None:
        self.stepper.end(outcome, saved_to=self.weights.saved_to)

    def _result(self, outcome: Finish, stopped_by: Signals | None) -> TrainResult:
        tally = self.stepper.tally
        return TrainResult(
            outcome=outcome,
            steps=self.stepper.done,
            rates=self.rates,
            losses=tuple(self.stepper.losses),
            extra_losses=self.stepper.extra_losses,
            evaluations=tuple(self.evaluations),
            best=self.best,
            seconds=self.stepper.seconds,
            tokens=tally.tokens,
            tokens_per_second=tally.tokens_per_second,
            padding_share=tally.padding_share,
            peak_memory=peak_memory(),
            trainable_parameters=count_elements(self.stepper.optimizer.parameters),
            total_parameters=count_elements(self.model.parameters()),
            saved_to=self.weights.saved_to,
            stopped_by=stopped_by,
        )


def _score(measured: Metrics | Evaluated) -> tuple[float, float]:
    """Rank an evaluation: by accuracy, then loss; a language model by loss alone."""
    return measured.accuracy or 0.0, -measured.loss
