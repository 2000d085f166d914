"""What the demo does with a model: a probe of what it is, LoRA, and the merged checkpoint."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import Array, BoolArray, IntArray
from tinygrad_peft.models import load_model, save_model
from tinygrad_peft.models.tokenizer import Tokenizer
from tinygrad_peft.nn import AdamW, Init, Linear, Transformer
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.peft import Host, PeftModel, get_peft_model, parse_method
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.train import TrainConfig, train
from tinygrad_peft.train.batching import batches
from tinygrad_peft.train.data import (
    ClassificationExample,
    Encoded,
    encode_classification,
    label_names,
)
from tinygrad_peft.train.progress import progress_display

__all__ = ["METHOD", "Job", "Outcome", "Say", "Score", "run_job"]

METHOD = "lora:r=8,lora_alpha=16,target_modules=query+value,modules_to_save=classifier"

# More steps than these fit the head to its few examples and cost accuracy on others.
PROBE_STEPS = 100
PROBE_LR = 1e-3

Say: TypeAlias = Callable[[str], None]
_Forward: TypeAlias = Callable[[IntArray, BoolArray], Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to fine-tune, on what, and how."""

    title: str
    model: Transformer  # of the BERT family; it gets a new head, and the adapter
    tokenizer: Tokenizer
    train_set: Sequence[ClassificationExample]
    test_set: Sequence[ClassificationExample]
    config: TrainConfig  # of LoRA


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one way of training did."""

    accuracy: float  # on the test set
    trainable: int  # parameters
    seconds: float  # of training; the test is not in them


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured, and where the files are."""

    probe: Score
    lora: Score
    tested: int
    equal: int  # predictions of the merged checkpoint that are the adapted model's
    largest_difference: float  # between the two, in any logit
    adapter: Path
    merged: Path


def run_job(job: Job, out: Path, say: Say) -> Outcome:
    """Measure both ways on the same examples; leave the adapter and the merged model in `out`.

    `say` is told of each part as it begins. Raises KeyboardInterrupt where Ctrl-C ended a part.
    """
    labels = label_names(job.train_set)
    train_set, test_set = (
        encode_classification(examples, labels, job.tokenizer, job.config.max_length)
        for examples in (job.train_set, job.test_set)
    )
    job.model.with_classifier(labels, pooling="mean", seed=job.config.seed)
    say(f"{job.title}: {len(train_set):,} to train on, {len(test_set):,} to test on")
    say("before: a linear probe of the frozen model")
    probe = _probe(job, train_set, test_set)
    say("after: LoRA, r=8, on query and value")
    peft, lora, logits = _adapt(job, train_set, test_set)
    say("merging, and reading the merged checkpoint back")
    merged_logits = _merge(job, peft, out, test_set)
    return Outcome(
        probe=probe,
        lora=lora,
        tested=len(test_set),
        equal=int(np.count_nonzero(logits.argmax(axis=1) == merged_logits.argmax(axis=1))),
        largest_difference=float(np.abs(logits - merged_logits).max()),
        adapter=out / "adapter",
        merged=out / "merged",
    )


# ---------- before ----------


def _probe(job: Job, train_set: Sequence[Encoded], test_set: Sequence[Encoded]) -> Score:
    """A linear head on the mean-pooled features of the model as it is."""
    started = time.perf_counter()
    head = _fitted_head(_features(job, train_set), _labels(train_set))
    seconds = time.perf_counter() - started
    with no_grad():
        logits = head(Tensor(_features(job, test_set)))  # (N, C)
    return Score(
        accuracy=_accuracy(logits.data, test_set),
        trainable=count_elements(head.parameters()),
        seconds=seconds,
    )


def _features(job: Job, encoded: Sequence[Encoded]) -> Array:
    """What the model makes of each text before any head: (N, D)."""

    def pooled(ids: IntArray, mask: BoolArray) -> Tensor:
        return job.model.pooled(ids, mask)

    return _outputs(pooled, encoded, job)


def _fitted_head(features: Array, labels: IntArray) -> Linear:
    """A linear classifier, trained on all features (N, D) at once."""
    x = Tensor(features)
    head = Linear(features.shape[1], int(labels.max()) + 1, init=Init(0, features.dtype))
    optimizer = AdamW(head.parameters(), lr=PROBE_LR)
    for _ in range(PROBE_STEPS):
        F.cross_entropy(head(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head


# ---------- after ----------


def _adapt(
    job: Job, train_set: Sequence[Encoded], test_set: Sequence[Encoded]
) -> tuple[PeftModel, Score, Array]:
    """The model with a trained adapter, how it did, and its logits (N, C) for the test set."""
    host = Host.installed()
    recipe = parse_method(METHOD, host.methods())
    peft = get_peft_model(job.model, recipe, seed=job.config.seed, host=host)
    with progress_display() as display:
        result = train(peft, train_set, None, job.config, pad_id=_pad(job), observers=[display])
    if result.interrupted:
        raise KeyboardInterrupt
    logits = _outputs(peft, test_set, job)
    score = Score(
        accuracy=_accuracy(logits, test_set),
        trainable=result.trainable_parameters,
        seconds=result.seconds,
    )
    return peft, score, logits


def _merge(job: Job, peft: PeftModel, out: Path, test_set: Sequence[Encoded]) -> Array:
    """Save the adapter and the merged model; the logits (N, C) of the latter, as it was saved."""
    peft.save_pretrained(out / "adapter")
    save_model(peft.merge_and_unload(), out / "merged")
    job.tokenizer.save(out / "merged")
    return _outputs(load_model(out / "merged"), test_set, job)


# ---------- both ----------


def _outputs(forward: _Forward, encoded: Sequence[Encoded], job: Job) -> Array:
    """What `forward` gives for each example, in their order: (N, ...)."""
    made = batches(encoded, job.config.batch_size, pad_id=_pad(job), seed=None)
    with no_grad():
        outputs = [forward(batch.input_ids, batch.attention_mask).data for batch in made]
    order = np.concatenate([batch.index for batch in made])
    return np.concatenate(outputs)[np.argsort(order)]


def _accuracy(logits: Array, encoded: Sequence[Encoded]) -> float:
    return float(np.mean(logits.argmax(axis=1) == _labels(encoded)))


def _labels(encoded: Sequence[Encoded]) -> IntArray:
    return np.array([row.labels for row in encoded])


def _pad(job: Job) -> int:
    return job.tokenizer.pad_id or 0
