"""A training job's model with its head, and its data as token ids."""

from dataclasses import dataclass

from tinygrad_peft.cli.examples import Examples
from tinygrad_peft.cli.sources import data_path, model_path
from tinygrad_peft.cli.training_job import TrainingJob
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models import load_model, load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.examples import ClassificationExample, Task, label_names, task_of_file

__all__ = ["PreparedJob", "prepare"]


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A model with a head for the task, and its data as token ids."""

    job: TrainingJob
    task: Task
    model: Transformer
    train_set: EncodedData
    eval_set: EncodedData | None

    def description(self) -> dict[str, object]:
        """Return the job as the files of a run record it."""
        return {
            "model": self.job.model,
            "train": self.job.train_data,
            "eval": self.job.eval_data,
            "task": self.task,
            "methods": list(self.job.methods),
            "labels": list(self.model.config.label_names),
        }


def prepare(job: TrainingJob) -> PreparedJob:
    """Read the data and the model.

    Raises DataError for data that cannot be used or has one label only, TokenError where it does
    not fit the model, and ConfigError for an encoder without a language-model head.
    """
    task = job.task or task_of_file(data_path(job.train_data, "train"))
    # Both data sets before anything slow, so that errors in them come at once.
    train_set = Examples.read(job.train_data, "train", task)
    eval_set = Examples.read(job.eval_data, "test", task) if job.eval_data else None
    source = model_path(job.model)
    tokenizer = load_tokenizer(source)
    model = load_model(source)
    _give_head(model, task, train_set, job)
    length = job.config.max_length
    assert length is not None, "--max-length has a default"
    return PreparedJob(
        job=job,
        task=task,
        model=model,
        train_set=train_set.encoded(tokenizer, length, model.config),
        eval_set=eval_set.encoded(tokenizer, length, model.config) if eval_set else None,
    )


def _give_head(model: Transformer, task: Task, train_set: Examples, job: TrainingJob) -> None:
    if task == "causal-lm":
        if model.lm_head is None:
            raise ConfigError(
                f"{job.model} has no language-model head, which --task causal-lm needs; "
                "for an encoder there is --task sequence-classification"
            )
        return
    labels = label_names([e for e in train_set.rows if isinstance(e, ClassificationExample)])
    if len(labels) < 2:
        raise DataError(
            f"{train_set.path}: every example has the label {labels[0]!r}, expected two or more"
        )
    if model.classifier is None or set(model.config.label_names) != set(labels):
        model.with_classifier(labels, pooling=job.pooling, seed=job.config.seed)
