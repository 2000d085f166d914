"""What finetune and compare have in common: their options, and a model with its data."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinygrad_peft.cli.fetching import data_path, model_path
from tinygrad_peft.cli.loading import Examples, load_base
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models.tokenizer import load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.config import OptimizerName, ScheduleName
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.examples import ClassificationExample, Task, label_names, task_of_file

__all__ = ["Prepared", "TrainingOptions", "prepare"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options that train something, as their help has them."""

    model: str
    train_data: str
    eval_data: str | None
    task: Task | None
    methods: tuple[str, ...]
    out: Path
    epochs: int
    lr: float | None
    batch_size: int
    accumulation: int
    max_length: int
    max_steps: int | None
    eval_every: int
    warmup: float
    schedule: ScheduleName
    optimizer: OptimizerName
    weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    seed: int
    pooling: Literal["mean", "cls"]

    def train_config(self) -> TrainConfig:
        """What the training loop is told. Raises ConfigError that lists all that cannot be."""
        shared = {field.name for field in dataclasses.fields(TrainConfig)}
        values = {name: value for name, value in vars(self).items() if name in shared}
        values["max_grad_norm"] = self.max_grad_norm or None
        return TrainConfig(**values)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model with a head for the task, and its data as token ids."""

    task: Task
    model: Transformer
    train_set: EncodedData
    eval_set: EncodedData | None

    def job(self, options: TrainingOptions) -> dict[str, object]:
        """What the files of a run say of it."""
        return {
            "model": options.model,
            "train": options.train_data,
            "eval": options.eval_data,
            "task": self.task,
            "methods": list(options.methods),
            "labels": list(self.model.config.label_names),
        }


def prepare(options: TrainingOptions) -> Prepared:
    """Read the data and the model.

    Raises DataError for data that cannot be used or has one label only, TokenError where it does
    not fit the model, and ConfigError for an encoder without a language-model head.
    """
    task = options.task or task_of_file(data_path(options.train_data, "train"))
    # Both data sets before anything slow, so that what is wrong in them is told at once.
    train_set = Examples.read(options.train_data, "train", task)
    eval_set = Examples.read(options.eval_data, "test", task) if options.eval_data else None
    source = model_path(options.model)
    tokenizer = load_tokenizer(source)
    model = load_base(source)
    _give_head(model, task, train_set, options)
    length = options.max_length
    return Prepared(
        task=task,
        model=model,
        train_set=train_set.encoded(tokenizer, length, model.config),
        eval_set=eval_set.encoded(tokenizer, length, model.config) if eval_set else None,
    )


def _give_head(
    model: Transformer, task: Task, train_set: Examples, options: TrainingOptions
) -> None:
    if task == "causal-lm":
        if model.lm_head is None:
            raise ConfigError(
                f"{options.model} has no language-model head, which --task causal-lm needs; "
                "for an encoder there is --task sequence-classification"
            )
        return
    labels = label_names([e for e in train_set.rows if isinstance(e, ClassificationExample)])
    if len(labels) < 2:
        raise DataError(
            f"{train_set.path}: every example has the label {labels[0]!r}, expected two or more"
        )
    if model.classifier is None or set(model.config.label_names) != set(labels):
        model.with_classifier(labels, pooling=options.pooling, seed=options.seed)
