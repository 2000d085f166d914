"""`tinygrad-peft finetune`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinygrad_peft.cli.fetching import data_path, model_path
from tinygrad_peft.cli.loading import load_base
from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.errors import ConfigError, DataError
from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.models.tokenizer import Tokenizer, load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, hookspecs, parse_method
from tinygrad_peft.train import TrainConfig, TrainResult, train
from tinygrad_peft.train.data import (
    ClassificationExample,
    Encoded,
    Example,
    Task,
    encode_examples,
    label_names,
    read_examples,
)
from tinygrad_peft.train.events import Event, Observer, StepEnded
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
    schedule: Literal["linear", "cosine", "constant"]
    optimizer: Literal["adamw", "sgd"]
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
    host = Host.installed()
    recipe = [parse_method(spec, host.methods()) for spec in options.methods]
    train_set, eval_set = _examples(options)
    tokenizer = load_tokenizer(model_path(options.model))
    model = load_base(options.model)
    labels = _give_head(model, train_set, options)
    if model.classifier is not None:
        recipe[0] = _with_saved_head(recipe[0], model)
    peft = get_peft_model(model, recipe, seed=options.seed, host=host)
    encoded = _encoded(train_set, tokenizer, options, labels)
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        JsonLines(options.out / "log.jsonl") as log,
        progress_display(quiet=quiet or as_json) as display,
    ):
        result = train(
            peft,
            encoded,
            _encoded(eval_set, tokenizer, options, labels) if eval_set else None,
            config,
            pad_id=tokenizer.pad_id or 0,
            out=options.out,
            save=peft.save_pretrained,
            observers=[log, display, _plugin_observer(host)],
        )
    job: dict[str, object] = {"model": options.model, "train": options.train_data}
    job["eval"] = options.eval_data
    job |= {"task": options.task, "methods": list(options.methods), "labels": list(labels)}
    write_metrics(options.out / "metrics.json", config, result, job=job)
    _report(options, peft, result, as_json=as_json)
    return 130 if result.interrupted else 0


def _examples(options: FinetuneOptions) -> tuple[Sequence[Example], Sequence[Example] | None]:
    """Both data sets, read before anything slow, so that what is wrong in them is told at once."""
    train_set = read_examples(data_path(options.train_data, "train"), options.task)
    if options.eval_data is None:
        return train_set, None
    return train_set, read_examples(data_path(options.eval_data, "test"), options.task)


def _give_head(
    model: Transformer, train_set: Sequence[Example], options: FinetuneOptions
) -> tuple[str, ...]:
    """Put a head for the task on the model; return the labels' names, none for causal LM.

    Raises DataError for data with one label only, and ConfigError for an encoder without a
    language-model head.
    """
    if options.task == "causal-lm":
        if model.lm_head is None:
            raise ConfigError(f"{options.model} has no language-model head: no causal-lm with it")
        return ()
    labels = label_names([e for e in train_set if isinstance(e, ClassificationExample)])
    if len(labels) < 2:
        raise DataError(f"{options.train_data}: every example has the label {labels[0]!r}")
    if model.classifier is None or set(model.config.label_names) != set(labels):
        model.with_classifier(labels, pooling=options.pooling, seed=options.seed)
    return model.config.label_names


def _with_saved_head(config: PeftConfig, model: Transformer) -> PeftConfig:
    """The config with the classification head among the modules that are trained whole."""
    head = checkpoint_path(model.config, "classifier")
    if head in config.modules_to_save:
        return config
    return dataclasses.replace(config, modules_to_save=(*config.modules_to_save, head))


def _encoded(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    options: FinetuneOptions,
    labels: Sequence[str],
) -> list[Encoded]:
    return encode_examples(examples, tokenizer, options.max_length, labels)


def _plugin_observer(host: Host) -> Observer:
    """Tells plugins of each step."""

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            host.each(hookspecs.step_ended, event)

    return observe


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
    if best is not None:
        rows.append(("evaluation loss", f"{best.loss:.4f}"))
        if best.accuracy is not None:
            rows.append(("accuracy", f"{100 * best.accuracy:.2f} %"))
    rows.append(("saved in", str(result.saved_to or options.out)))
    emit(values, columns(rows), as_json=as_json)
