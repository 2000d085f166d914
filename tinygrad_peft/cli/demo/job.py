"""The demo's job: compare several recipes on a model, and merge the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.cli.comparison_output import ProgressLines, draw
from tinygrad_peft.cli.contenders import parse_contenders
from tinygrad_peft.errors import PeftError
from tinygrad_peft.files import saving
from tinygrad_peft.models import Tokenizer, load_model, save_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftModel
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train import Comparison, Contender, TrainConfig, compare
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.encoding import EncodedData, encode_classification
from tinygrad_peft.train.examples import ClassificationExample, label_names
from tinygrad_peft.train.heads import cut_at
from tinygrad_peft.train.progress import progress_display

__all__ = ["PROBE", "Job", "Merged", "Outcome", "Say", "run_job"]

PROBE = "frozen probe"

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, its data, and the recipes to train it with."""

    title: str
    model: Transformer  # of the BERT family; it gets a new head, and the adapters
    tokenizer: Tokenizer
    train_set: Sequence[ClassificationExample]
    test_set: Sequence[ClassificationExample]
    config: TrainConfig
    recipes: Sequence[str]  # as `compare --method` takes them; the first one can be merged


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The first recipe's merged checkpoint compared with its adapted model."""

    tested: int
    equal: int  # predictions
    largest_difference: float  # in any logit
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The measurements, and where the files are."""

    comparison: Comparison
    merged: Merged
    out: Path
    note: str  # the reason for a missing picture


def run_job(job: Job, out: Path, say: Say) -> Outcome:
    """Compare the recipes on the same examples; leave adapters and a merged model in `out`.

    `say` gets a line as each part begins. Raises KeyboardInterrupt if Ctrl-C ended a part, and
    PeftError if a recipe failed.
    """
    labels = label_names(job.train_set)
    train_set, test_set = (
        encode_classification(examples, labels, job.tokenizer, job.config.max_length)
        for examples in (job.train_set, job.test_set)
    )
    job.model.with_classifier(labels, seed=job.config.seed)
    cut_at(job.model, job.config.max_length)
    host = Host.installed()
    contenders = parse_contenders(job.recipes, host)
    say(f"{job.title}: {len(train_set):,} to train on, {len(test_set):,} to test on")
    with progress_display() as display:
        comparison = compare(
            job.model,
            [Contender(label=PROBE), *contenders],
            train_set,
            test_set,
            job.config,
            host=host,
            out=out,
            watcher=ProgressLines(display),
        )
    _require_all(comparison)
    say("merging the first adapter, and reading the merged checkpoint back")
    return Outcome(
        comparison=comparison,
        merged=_merge(job, out, comparison, test_set),
        out=out,
        note=draw(comparison, out),
    )


def _require_all(comparison: Comparison) -> None:
    if comparison.interrupted:
        raise KeyboardInterrupt
    if comparison.failed:
        failed = comparison.failed[0]
        raise PeftError(f"{failed.label} failed: {failed.error}")


# ---------- merging ----------


def _merge(job: Job, out: Path, comparison: Comparison, test_set: EncodedData) -> Merged:
    """Save the first adapter's merged model, read it back, and compare the predictions."""
    folders = [out / row.folder for row in comparison.rows if row.folder is not None]
    for folder in folders:
        job.tokenizer.save(folder)
    peft = PeftModel.from_pretrained(job.model, folders[0], host=Host.installed())
    adapted, folder = _logits(peft, test_set, job), out / "merged"
    with saving(folder) as save:
        save_model(peft.merge_and_unload(), save.staged, overwrite=True)
        job.tokenizer.save(save.staged)
    merged = _logits(load_model(folder), test_set, job)
    return Merged(
        tested=len(test_set),
        equal=int(np.count_nonzero(adapted.argmax(axis=1) == merged.argmax(axis=1))),
        largest_difference=float(np.abs(adapted - merged).max()),
        folder=folder,
    )


def _logits(model: Transformer | PeftModel, encoded: EncodedData, job: Job) -> Array:
    """Return the logits of each example, in the same order each time: (N, C)."""
    made = batches(encoded, job.config.batch_size, seed=None)
    model.eval()
    with no_grad():
        return np.concatenate([model(b.input_ids, b.attention_mask).data for b in made])
