"""A training job's model with its head, and its data as token ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygrad_peft.cli.adapted_models import with_adapter
from tinygrad_peft.cli.examples import Examples, token_limit
from tinygrad_peft.cli.sources import adapter_path, data_path, model_path
from tinygrad_peft.cli.tokenizers import tokenizer_of
from tinygrad_peft.cli.training_job import TrainingJob
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models import Tokenizer, load_model, load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.nn.heads import require_one_class
from tinygrad_peft.peft import PeftConfig, PeftModel, VirtualConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.examples import ClassificationExample, Task, label_names, task_of_file
from tinygrad_peft.train.heads import cut_at
from tinygrad_peft.train.label_matching import class_names, class_numbers, quoted

__all__ = ["PreparedJob", "prepare"]


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A model with a head for the task, and its data as token ids.

    adapted: the model with the adapter that training starts from, if the job names one.
    """

    job: TrainingJob
    task: Task
    model: Transformer
    tokenizer: Tokenizer
    has_own_tokenizer: bool
    adapted: PeftModel | None
    max_length: int  # tokens of an example
    train_set: EncodedData
    eval_set: EncodedData | None

    def description(self) -> dict[str, object]:
        """Return the job as the files of a run record it."""
        config, sets = self.model.config, {"train": self.train_set, "eval": self.eval_set}
        return {
            "model": self.job.model,
            "train": self.job.train_data,
            "eval": self.job.eval_data,
            "task": self.task,
            "methods": list(self.job.methods),
            **({"adapter": str(self.job.adapter)} if self.job.adapter else {}),
            "labels": list(class_names(config.label_names, config.num_labels)),
            "max_length": self.max_length,
            "truncated": {part: data.truncated for part, data in sets.items() if data},
            "left_out": {part: data.left_out for part, data in sets.items() if data},
        }

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer beside an adapter that has its own.

        That is one that sentence-transformers opens, or that started from one with its own.
        """
        if self.model.config.is_sentence_classifier or self.has_own_tokenizer:
            self.tokenizer.save(folder)


def prepare(job: TrainingJob, recipes: Iterable[Sequence[PeftConfig]]) -> PreparedJob:
    """Read the data and the model; leave room for the virtual tokens of each recipe.

    Raises DataError for data that cannot be used, has one label only, or labels that the model's
    head does not have; TokenError where it does not fit the model; ConfigError for an encoder
    without a language-model head, and for an adapter without a head that the task needs; and what
    `PeftModel.from_pretrained` raises.
    """
    task = job.task or task_of_file(data_path(job.train_data, "train"))
    # Both data sets before anything slow, so that errors in them come at once.
    train_set = Examples.read(job.train_data, "train", task)
    eval_set = Examples.read(job.eval_data, "test", task) if job.eval_data else None
    source = model_path(job.model)
    start = None if job.adapter is None else adapter_path(job.adapter)
    tokenizer = load_tokenizer(source) if start is None else None
    model = load_model(source, allow_nonfinite=job.allow_nonfinite)
    adapted = None
    if job.adapter is not None:
        adapted = with_adapter(
            model, job.adapter, is_trainable=True, allow_nonfinite=job.allow_nonfinite
        )
        recipes = [adapted.recipe]
    tokenizer = tokenizer or tokenizer_of(source, start)
    _require_head(model, task, job)
    if task != "causal-lm":
        _give_head(model, train_set, job)
    elif job.pooling is not None or job.new_head:
        raise ConfigError("--pooling and --new-head are for --task sequence-classification")
    virtual = max(map(_virtual_tokens, recipes), default=0)
    length = token_limit(job.config.max_length, tokenizer, model.config, virtual)
    cut_at(model, length)
    return PreparedJob(
        job=job,
        task=task,
        model=model,
        tokenizer=tokenizer,
        has_own_tokenizer=start is not None and (start / "tokenizer.json").is_file(),
        adapted=adapted,
        max_length=length,
        train_set=train_set.encoded(tokenizer, length, model.config),
        eval_set=eval_set.encoded(tokenizer, length, model.config) if eval_set else None,
    )


def _require_head(model: Transformer, task: Task, job: TrainingJob) -> None:
    """Raise ConfigError if the model lacks a head that cannot be new."""
    if task == "causal-lm" and model.lm_head is None:
        raise ConfigError(
            f"{job.model} has no language-model head, which --task causal-lm needs; "
            "for an encoder there is --task sequence-classification"
        )
    if task != "causal-lm" and job.adapter is not None and model.classifier is None:
        raise ConfigError(
            f"neither {job.adapter} nor {job.model} has a classification head, which "
            "--task sequence-classification needs"
        )


def _give_head(model: Transformer, train_set: Examples, job: TrainingJob) -> None:
    labels = label_names([e for e in train_set.rows if isinstance(e, ClassificationExample)])
    if len(labels) < 2:
        raise DataError(
            f"{train_set.path}: every example has the label {labels[0]!r}, expected two or more"
        )
    if model.classifier is None or job.new_head:
        model.with_classifier(labels, pooling=job.pooling, seed=job.config.seed)
        return
    if job.pooling is not None:
        raise ConfigError(
            f"--pooling is for a new head, and {job.model} has one (--new-head makes one)"
        )
    try:
        require_one_class(model.config)
    except ConfigError as error:
        raise ConfigError(f"{job.model} has {error} (--new-head makes one)") from None
    names = class_names(model.config.label_names, model.config.num_labels)
    try:
        class_numbers(labels, names)
    except DataError:
        owner, hint = job.adapter or job.model, ""
        if job.adapter is None:
            hint = ": --new-head trains a new head for them"
        raise DataError(
            f"{train_set.path}: expected labels of the head of {owner}, {quoted(names)}, got "
            f"{quoted(labels)}{hint}"
        ) from None


def _virtual_tokens(recipe: Sequence[PeftConfig]) -> int:
    return sum(step.num_virtual_tokens for step in recipe if isinstance(step, VirtualConfig))
