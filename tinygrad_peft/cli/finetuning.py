"""`tinygrad-peft finetune`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.loading import Examples, load_base
from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.models.tokenizer import load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, parse_method
from tinygrad_peft.train import TrainConfig, TrainResult, train
from tinygrad_peft.train.config import OptimizerName, ScheduleName
from tinygrad_peft.train.data import (
    ClassificationExample,
    Encoded,
    Task,
    label_names,
)
from tinygrad_peft.train.log import JsonLines, write_metrics
from tinygrad_peft.train.progress import progress_display

__all__ = ["FinetuneOptions", "finetune"]


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The options of `tinygrad-peft finetune`, as its help has them."""

    model: str
    train_data: str
    eval_data: str | None
    task: Task
    methods: tuple[str, ...]
    out: Path
    epochs: int
    lr: float
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


def finetune(options: FinetuneOptions, *, as_json: bool, quiet: bool) -> int:
    """Train, save and report. Returns the exit status: 130 after Ctrl-C, else 0."""
    config = options.train_config()
    check_output(options.out, refused=("config.json", "adapter_config.json", "recipe.json"))
    host = Host.installed()
    recipe = [parse_method(spec, host.methods()) for spec in options.methods]
    # Both data sets before anything slow, so that what is wrong in them is told at once.
    train_set = Examples.read(options.train_data, "train", options.task)
    eval_set = options.eval_data and Examples.read(options.eval_data, "test", options.task)
    source = model_path(options.model)
    tokenizer = load_tokenizer(source)
    model = load_base(source)
    _give_head(model, train_set, options)
    if model.classifier is not None:
        recipe[0] = _with_saved_head(recipe[0], model)
    peft = get_peft_model(model, recipe, seed=options.seed, host=host)
    peft.release_base()  # the folder is what is wanted of this run, and not the base
    job = _Job(
        options=options,
        config=config,
        peft=peft,
        train_set=train_set.encoded(tokenizer, options.max_length, model.config),
        eval_set=eval_set.encoded(tokenizer, options.max_length, model.config)
        if eval_set
        else None,
        pad_id=tokenizer.pad_id or 0,
    )
    result = job.run(quiet=quiet or as_json)
    _report(options, peft, result, as_json=as_json)
    return 130 if result.interrupted else 0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that is needed to train."""

    options: FinetuneOptions
    config: TrainConfig
    peft: PeftModel
    train_set: Sequence[Encoded]
    eval_set: Sequence[Encoded] | None
    pad_id: int

    def run(self, *, quiet: bool) -> TrainResult:
        """Train into the folder; this is the first that is written there."""
        out = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        with JsonLines(out / "log.jsonl") as log, progress_display(quiet=quiet) as display:
            result = train(
                self.peft,
                self.train_set,
                self.eval_set,
                self.config,
                pad_id=self.pad_id,
                out=out,
                save=self.peft.save_pretrained,
                observers=[log, display],
            )
        write_metrics(out / "metrics.json", self.config, result, job=self._described())
        return result

    def _described(self) -> dict[str, object]:
        return {
            "model": self.options.model,
            "train": self.options.train_data,
            "eval": self.options.eval_data,
            "task": self.options.task,
            "methods": list(self.options.methods),
            "labels": list(self.peft.config.label_names),
        }


def _give_head(model: Transformer, train_set: Examples, options: FinetuneOptions) -> None:
    """Put a head for the task on the model.

    Raises DataError for data with one label only, and ConfigError for an encoder without a
    language-model head.
    """
    if options.task == "causal-lm":
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


def _with_saved_head(config: PeftConfig, model: Transformer) -> PeftConfig:
    """The config with the classification head among the modules that are trained whole."""
    head = checkpoint_path(model.config, "classifier")
    if head in config.modules_to_save:
        return config
    return dataclasses.replace(config, modules_to_save=(*config.modules_to_save, head))


def _report(
    options: FinetuneOptions, peft: PeftModel, result: TrainResult, *, as_json: bool
) -> None:
    trainable, total = peft.get_nb_trainable_parameters()
    best = result.best
    values = {
        "out": str(result.saved_to or options.out),
        "outcome": result.outcome,
        "steps": result.steps,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "trainable": trainable,
        "total": total,
        "loss": result.losses[-1] if result.losses else None,
        "eval_loss": best.loss if best else None,
        "eval_accuracy": best.accuracy if best else None,
    }
    rows = [
        ("steps", f"{result.steps:,}"),
        ("seconds", f"{result.seconds:.1f}"),
        ("trainable", f"{trainable:,} of {total:,} ({100 * trainable / total:.3f} %)"),
    ]
    if result.interrupted:
        rows.insert(0, ("outcome", "interrupted"))
    if result.losses:
        rows.append(("last training loss", f"{result.losses[-1]:.4f}"))
    if best is not None:
        rows.append(("evaluation loss", f"{best.loss:.4f}"))
        if best.accuracy is not None:
            rows.append(("accuracy", f"{100 * best.accuracy:.2f} %"))
    rows.append(("saved in", str(result.saved_to or options.out)))
    emit(values, columns(rows), as_json=as_json)
