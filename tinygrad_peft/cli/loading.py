"""Models with their adapters, as commands name them."""

from pathlib import Path

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftModel
from tinygrad_peft.peft.checkpoint import read_head
from tinygrad_peft.train.data import Task

__all__ = ["load_adapted", "load_base", "task_of"]


def load_base(model: str) -> Transformer:
    """The model of a path or a fetched name."""
    return load_model(model_path(model))


def load_adapted(
    model: str, adapter: Path | None, host: Host | None = None
) -> Transformer | PeftModel:
    """The model with an adapter applied, and with the head that it was trained with."""
    base = load_base(model)
    if adapter is None:
        return base
    head = read_head(adapter)
    if head is not None and base.classifier is None:
        base.with_classifier(head.label_names or head.num_labels, pooling=head.pooling)
    return PeftModel.from_pretrained(base, adapter, host=host)


def task_of(model: Transformer | PeftModel) -> Task:
    """What a model is for. Raises ConfigError for a bare encoder."""
    head = model.config.head
    if head == "none":
        raise ConfigError(
            "a bare encoder has nothing to evaluate: name the --adapter with its head"
        )
    return "causal-lm" if head == "lm" else "sequence-classification"
