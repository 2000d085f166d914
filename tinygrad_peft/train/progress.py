"""The progress of a run, shown while it goes on."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from tinygrad_peft.train.events import (
    Evaluated,
    Event,
    Observer,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
)

__all__ = ["progress_display"]

SMOOTHING = 0.9  # of the displayed loss: about ten steps


@contextmanager
def progress_display(*, quiet: bool = False, live: bool | None = None) -> Iterator[Observer]:
    """Yield an observer that shows a run on standard error, and leaves standard output free.

    A terminal shows a live line (step, bar, time left, loss, learning rates, tokens per second)
    below a line for each evaluation. If standard output or standard error is not a terminal, or
    rich (the extra `cli`) is not installed, only the evaluations and the end get a line. `live`
    switches the live line on or off; `quiet` shows nothing at all. A terminal that is gone ends the
    display, not the run.
    """
    if live is None:
        live = sys.stdout.isatty() and sys.stderr.isatty()
    if quiet:
        yield _ignore
    elif live and find_spec("rich") is not None:
        with _live_line() as observer:
            yield observer
    else:
        yield _Lines(_write)


def _write(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


def _ignore(_event: Event) -> None:
    pass


# ---------- lines ----------


class _Lines:
    """Write a line for each evaluation, and one for the end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.steps = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStarted):
            self.steps = event.steps
        elif isinstance(event, Evaluated):
            self.write(evaluation_line(event, self.steps))
        elif isinstance(event, TrainingEnded):
            self.write(ending_line(event))


def evaluation_line(event: Evaluated, steps: int) -> str:
    """Format `step 40/120: loss 0.4215, accuracy 82.30 %, the best so far`."""
    parts = [f"loss {event.loss:.4f}", *_named(event.extra_losses)]
    if event.accuracy is not None:
        parts.append(f"accuracy {event.accuracy:.2%}".replace("%", " %"))
    if event.perplexity is not None:
        parts.append(f"perplexity {event.perplexity:.2f}")
    if event.is_best:
        parts.append("the best so far")
    return f"step {event.step}/{steps}: {', '.join(parts)}"


def ending_line(event: TrainingEnded) -> str:
    """Format `finished after 120 steps in 35 s (4,120 tokens/s); the weights are in out`."""
    speed = f"{event.seconds:.0f} s ({event.tokens_per_second:,.0f} tokens/s)"
    saved = f"; the weights are in {event.saved_to}" if event.saved_to else ""
    return f"{event.outcome} after {event.step} steps in {speed}{saved}"


# ---------- a live line ----------


@contextmanager
def _live_line() -> Iterator[Observer]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    console = Console(stderr=True, highlight=False)
    # While the live line is shown, the console prints above it.
    lines = _Lines(lambda line: console.print(line, markup=False, soft_wrap=True))
    numbers = _Numbers()
    display = Progress(*columns, console=console, refresh_per_second=4, transient=True)
    task = display.add_task("", total=None, numbers="")

    def observe(event: Event) -> None:
        nonlocal numbers
        with suppress(OSError):
            lines(event)
            if isinstance(event, TrainingStarted):  # the first run, or another one
                numbers = _Numbers()
                display.reset(task, total=event.steps, numbers="")
            elif isinstance(event, StepEnded):
                display.update(task, completed=event.step, numbers=numbers.after(event))

    with suppress(OSError):
        display.start()
    try:
        yield observe
    finally:
        with suppress(OSError):
            display.stop()


class _Numbers:
    """The loss, smoothed, with the extra losses, learning rates and speed of the last step."""

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0.0

    def after(self, step: StepEnded) -> str:
        self.total = SMOOTHING * self.total + step.loss
        self.weight = SMOOTHING * self.weight + 1
        speed = step.tokens / step.seconds
        loss = "  ".join([f"loss {self.total / self.weight:.4f}", *_named(step.extra_losses)])
        rates = ", ".join(f"{lr:.1e}" for lr in dict.fromkeys(step.lrs))
        return f"{loss}  lr {rates}  {speed:,.0f} tokens/s"


def _named(extra_losses: Mapping[str, float]) -> list[str]:
    return [f"{name} {loss:.4f}" for name, loss in extra_losses.items()]
