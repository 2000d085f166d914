"""`make demo`, or `python -m tinygrad_peft.cli.demo`: the product at work, in under five minutes.

Each method, and two of them composed, is trained on the same film reviews and compared with what
the frozen model knows; and a merged model is compared with the adapted one. Without a network the
same is done with a small model that is trained on the spot.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinygrad_peft.cli.demo.recipes import demo_recipes
from tinygrad_peft.cli.streams import CLOSED_PIPE, NO_OUTPUT, discard_output, prepare_streams
from tinygrad_peft.errors import FetchError, NetworkError, TinygradPeftError

if TYPE_CHECKING:
    from types import FrameType

    from tinygrad_peft.cli.demo.job import Job
    from tinygrad_peft.cli.demo.offline import OfflineSizes

__all__ = ["main", "run_demo"]

TRAIN, TEST = 1_500, 600


def main(arguments: Sequence[str], *, sizes: "OfflineSizes | None" = None) -> int:
    """Run the demo and return its exit status, as `tinygrad_peft.cli.app.run` does."""
    options = _parser().parse_args(arguments)
    # With a handler of the program's own, Ctrl-C stops at once: nothing has to be saved first.
    before = signal.signal(signal.SIGINT, _stop)
    try:
        return _guarded(options, sizes)
    except BrokenPipeError:
        discard_output()
        return CLOSED_PIPE
    finally:
        signal.signal(signal.SIGINT, before)


def _guarded(options: argparse.Namespace, sizes: "OfflineSizes | None") -> int:
    """Show errors as plain lines."""
    try:
        run_demo(options.out, offline=options.offline, sizes=sizes)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    except TinygradPeftError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    return 0


def run_demo(out: Path, *, offline: bool = False, sizes: "OfflineSizes | None" = None) -> None:
    """Do the job, on the real model or offline, and print the outcome; files go to `out`."""
    from tinygrad_peft.cli.demo.job import run_job
    from tinygrad_peft.cli.demo.report import print_outcome

    out.mkdir(parents=True, exist_ok=True)  # an error in it comes now, not in a minute
    job = _job(offline=offline, sizes=sizes)
    print_outcome(run_job(job, out, _say))


def _job(*, offline: bool, sizes: "OfflineSizes | None") -> "Job":
    from tinygrad_peft.cli.demo.offline import OfflineSizes, offline_job

    if not offline:
        try:
            return _online_job()
        except FetchError as error:
            why = "offline" if isinstance(error, NetworkError) else "MiniLM-L6 cannot be had"
            reason = str(error).splitlines()[0]
            _say(f"{why}, so with a small model that is trained on the spot: {reason}")
    return offline_job(sizes or OfflineSizes(), _say)


def _online_job() -> "Job":
    """Take MiniLM-L6 and movie reviews. Raises FetchError if they cannot be downloaded."""
    from tinygrad_peft.cli.demo.job import Job
    from tinygrad_peft.models import load_model, load_tokenizer
    from tinygrad_peft.models.fetch import fetch
    from tinygrad_peft.train import TrainConfig
    from tinygrad_peft.train.examples import read_examples

    model, reviews = (fetch(name, progress=_say).path for name in ("minilm-l6", "movie-reviews"))
    return Job(
        title="MiniLM-L6 on movie reviews",
        model=load_model(model),
        tokenizer=load_tokenizer(model),
        train_set=read_examples(reviews / "train.jsonl", "sequence-classification")[:TRAIN],
        test_set=read_examples(reviews / "test.jsonl", "sequence-classification")[:TEST],
        config=TrainConfig(epochs=1, batch_size=16, max_length=64),
        recipes=demo_recipes("real"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinygrad_peft.cli.demo",
        description="Compare methods on a real model and real data, in under five minutes.",
    )
    parser.add_argument(
        "--offline", action="store_true", help="do it on a small model that is trained on the spot"
    )
    parser.add_argument(
        *("--out", "-o"),
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where the adapters, the picture and the merged model go (default: %(default)s)",
    )
    return parser


def _stop(_number: int, _frame: "FrameType | None") -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    _say(f"tinygrad-peft demo: {message}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if prepare_streams() else _fail(NO_OUTPUT, 2))
