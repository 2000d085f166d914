"""A training run with a folder of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.data import Encoded
from tinygrad_peft.train.events import Observer
from tinygrad_peft.train.log import JsonLines, write_metrics
from tinygrad_peft.train.loop import train
from tinygrad_peft.train.result import TrainResult

__all__ = ["train_into"]


def train_into(
    folder: Path,
    model: PeftModel,
    train_set: Sequence[Encoded],
    eval_set: Sequence[Encoded] | None,
    config: TrainConfig,
    *,
    pad_id: int,
    observers: Sequence[Observer] = (),
    job: Mapping[str, object] | None = None,
) -> TrainResult:
    """`train`, with the adapter, log.jsonl and metrics.json written into `folder`.

    `job` is what metrics.json says of the run besides its settings. Raises what `train` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with JsonLines(folder / "log.jsonl") as log:
        result = train(
            model,
            train_set,
            eval_set,
            config,
            pad_id=pad_id,
            out=folder,
            save=model.save_pretrained,
            observers=[log, *observers],
        )
    write_metrics(folder / "metrics.json", config, result, job=job)
    return result
