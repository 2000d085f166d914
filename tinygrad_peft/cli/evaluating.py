"""`tinygrad-peft evaluate`."""

from pathlib import Path

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.cli.loading import Examples, load_adapted, task_of
from tinygrad_peft.cli.output import columns, emit
from tinygrad_peft.models.tokenizer import load_tokenizer
from tinygrad_peft.train.evaluation import evaluate

__all__ = ["evaluate_data"]


def evaluate_data(
    model: str, adapter: Path | None, data: str, batch_size: int, max_length: int, *, as_json: bool
) -> None:
    """Print the loss, and the accuracy or the perplexity, of a model on a data set."""
    source = model_path(model)
    tokenizer = load_tokenizer(source)
    adapted = load_adapted(source, adapter)
    encoded = Examples.read(data, "test", task_of(adapted)).encoded(
        tokenizer, max_length, adapted.config
    )
    metrics = evaluate(adapted, encoded, batch_size=batch_size)
    values = {
        "examples": len(encoded),
        "labels": metrics.labels,
        "loss": metrics.loss,
        "accuracy": metrics.accuracy,
        "perplexity": metrics.perplexity,
    }
    rows = [(name, _number(value)) for name, value in values.items() if value is not None]
    emit(values, columns(rows), as_json=as_json)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
