"""One step of training at a time."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from tinygrad_peft.errors import ConfigError, TrainingError
from tinygrad_peft.nn.layers import seed_dropout
from tinygrad_peft.nn.optim import clip_grad_norm
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import hookspecs
from tinygrad_peft.train.batching import Batch
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.events import Event, Observer, Outcome, StepEnded, TrainingEnded
from tinygrad_peft.train.extra_losses import extra_losses, finite_values
from tinygrad_peft.train.optimizers import make_optimizer, make_schedule, step_factors
from tinygrad_peft.train.tally import Tally
from tinygrad_peft.train.trainable import Trainable

__all__ = ["Stepper"]


class Stepper:
    """Train a model step by step, in a loop of the caller's.

    Of `config` it takes the settings of a step: the optimiser and its rates, the schedule over
    `total_steps`, clipping, label smoothing, and the seed of dropout. Plugins and observers get the
    same events as from `train`, which is itself written with it.

    Attributes:
        optimizer: the optimiser of all that requires a gradient.
        losses: the loss of each step so far.
        extra_losses: the terms that plugins added to the last loss, by their names.
        tally: tokens, padding and time of the steps so far.
        earlier_seconds: the duration of the part of the run that this one goes on from.

    Raises TrainingError if nothing requires a gradient, and ConfigError for `total_steps` below 1.
    """

    def __init__(
        self,
        model: Trainable,
        config: TrainConfig,
        *,
        total_steps: int,
        observers: Sequence[Observer] = (),
    ) -> None:
        if total_steps < 1:
            raise ConfigError(f"total_steps: expected at least 1, got {total_steps}")
        self.model = model
        self.config = config
        self.total_steps = total_steps
        self.observers = observers
        self.optimizer = make_optimizer(config, model)
        self.losses: list[float] = []
        self.extra_losses: dict[str, float] = {}
        self.tally = Tally()
        self.earlier_seconds = 0.0
        self._peak = self.optimizer.lr
        self._schedule = make_schedule(config, total_steps)
        self._factors = step_factors(self.optimizer, model)
        self._host = model.host if isinstance(model, PeftModel) else None
        _, self.root = next(model.named_modules())
        self._started = time.perf_counter()
        seed_dropout(self.root, config.seed)
        self.optimizer.zero_grad()

    @property
    def done(self) -> int:
        """The number of steps so far."""
        return len(self.losses)

    @property
    def seconds(self) -> float:
        """The duration of the run so far, with all that happened between its steps."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def step(self, *batches: Batch, epoch: float = 0.0) -> StepEnded:
        """Make one step over all batches together, in training mode.

        The loss is the mean over all labels of the batches, as if they were one large batch, and
        not a mean of the batches' means. `epoch` goes into the event.

        Raises TrainingError for a loss, an extra loss or a gradient that is not finite. The weights
        are then those of the step before.
        """
        if not batches:
            raise ConfigError("a step: expected at least one batch, got none")
        started = time.perf_counter()
        if not self.root.training:
            self.model.train()
        lr = self.optimizer.lr = self._peak * self._schedule(self.done)
        # Overflows are found by their results, and told with the step that they happened in.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            try:
                loss, norm = self._move(batches)
            except BaseException as error:
                self.optimizer.zero_grad()  # else the next step would add to them
                if not isinstance(error, TrainingError):
                    raise
                where = f"step {self.done + 1}, learning rate {lr:.3g}"
                raise TrainingError(f"{error} ({where})") from None
        self.losses.append(loss)
        seconds = time.perf_counter() - started
        self.tally.add(batches, seconds)
        event = StepEnded(
            model=self.root,
            optimizer=self.optimizer,
            step=self.done,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=loss,
            extra_losses=self.extra_losses,
            lrs=tuple(lr * factor for factor in self._factors),
            grad_norm=norm,
            tokens=sum(batch.num_tokens for batch in batches),
            seconds=seconds,
        )
        try:
            if self._host is not None:
                with self.changing_weights():
                    self._host.each(hookspecs.step_ended, event)
        finally:
            self.optimizer.zero_grad()
        self.emit(event)
        return event

    def end(self, outcome: Outcome = "finished", *, saved_to: Path | None = None) -> TrainingEnded:
        """Switch to evaluation mode, and tell plugins and observers that training is over.

        Call it once, when the model has the weights that it keeps.
        """
        self.model.eval()
        event = TrainingEnded(
            model=self.root,
            outcome=outcome,
            step=self.done,
            seconds=self.seconds,
            tokens_per_second=self.tally.tokens_per_second,
            saved_to=saved_to,
        )
        if self._host is not None:
            self._host.each(hookspecs.training_ended, event)
        self.emit(event)
        return event

    def emit(self, event: Event) -> None:
        """Tell the observers of an event."""
        for observer in self.observers:
            observer(event)

    def changing_weights(self) -> AbstractContextManager[None]:
        """Keep other threads from running the weights within the block (an adapted model's)."""
        if isinstance(self.model, PeftModel):
            return self.model.changing_weights()
        return nullcontext()

    def ask_extra_losses(self) -> dict[str, Tensor]:
        """Ask the plugins for their terms of the loss, by their names."""
        return extra_losses(self._host, self.root)

    def _move(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Move the weights; return the loss and the norm of its gradient before clipping."""
        loss = self._accumulate(batches)
        norm = clip_grad_norm(self.optimizer.parameters, self.config.max_grad_norm or math.inf)
        if not math.isfinite(norm):
            raise TrainingError(f"the norm of the gradient is {norm}")
        with self.changing_weights():
            self.optimizer.step()
        return loss, norm

    def _accumulate(self, batches: Sequence[Batch]) -> float:
        """Add up the gradients of the mean loss over all labels and of the extra losses."""
        total = sum(batch.num_labels for batch in batches)
        loss = 0.0
        for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
            part, share = self._loss(batch), batch.num_labels / total
            loss += part.item() * batch.num_labels / total
            # Before its gradients: extra losses may use what modules keep of the last pass.
            terms = {} if left else self.ask_extra_losses()
            self.extra_losses = finite_values(terms)
            if any(term.requires_grad for term in terms.values()):
                sum(terms.values(), start=part * share).backward()
            else:
                part.backward(np.asarray(share))
        return loss + sum(self.extra_losses.values())

    def _loss(self, batch: Batch) -> Tensor:
        loss = self.model.loss(
            batch.input_ids,
            batch.labels,
            batch.attention_mask,
            label_smoothing=self.config.label_smoothing,
        )
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()}")
        return loss
