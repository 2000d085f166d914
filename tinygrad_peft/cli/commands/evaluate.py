"""`tinygrad-peft evaluate`."""

from pathlib import Path

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.cli.text import columns

__all__ = ["evaluate"]

_SELDOM = ("truncated", "left_out")  # shown to people where it happened


@command
@options.model
@options.adapter(required=False)
@click.option("--data", type=options.NAME, required=True, help="JSON lines or CSV.")
@options.batches
@options.allow_nonfinite
def evaluate(
    model: str,
    adapter: Path | None,
    data: str,
    batch_size: int,
    max_length: int | None,
    *,
    allow_nonfinite: bool,
) -> Report:
    """Measure a model's loss, and accuracy or perplexity, on data."""
    from tinygrad_peft.cli.adapted_models import load_adapted, task_of
    from tinygrad_peft.cli.examples import Examples, token_limit
    from tinygrad_peft.cli.sources import adapter_path, model_path
    from tinygrad_peft.cli.tokenizers import tokenizer_of
    from tinygrad_peft.peft import PeftModel
    from tinygrad_peft.train import evaluation

    source = model_path(model)
    adapter = None if adapter is None else adapter_path(adapter)
    tokenizer = tokenizer_of(source, adapter)
    adapted = load_adapted(source, adapter, allow_nonfinite=allow_nonfinite)
    virtual = (adapted.base_model if isinstance(adapted, PeftModel) else adapted).num_virtual_tokens
    length = token_limit(max_length, tokenizer, adapted.config, virtual)
    encoded = Examples.read(data, "test", task_of(adapted)).encoded(
        tokenizer, length, adapted.config
    )
    metrics = evaluation.evaluate(adapted, encoded, batch_size=batch_size)
    values = {
        "examples": len(encoded),
        "truncated": encoded.truncated,
        "left_out": encoded.left_out,
        "labels": metrics.labels,
        "loss": metrics.loss,
        "accuracy": metrics.accuracy,
        "perplexity": metrics.perplexity,
    }
    shown = {k: v for k, v in values.items() if v is not None and (v or k not in _SELDOM)}
    rows = [(name, _number(value)) for name, value in shown.items()]
    return Report(values=values, lines=columns(rows))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
