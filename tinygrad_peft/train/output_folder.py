"""A training run that writes its files into a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygrad_peft.files import claimed
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.events import Observer
from tinygrad_peft.train.log import JsonLines, write_metrics
from tinygrad_peft.train.loop import train
from tinygrad_peft.train.result import TrainResult

__all__ = ["train_into"]


def train_into(
    folder: Path,
    model: PeftModel,
    train_set: EncodedData,
    eval_set: EncodedData | None,
    config: TrainConfig,
    *,
    observers: Sequence[Observer] = (),
    job: Mapping[str, object] | None = None,
) -> TrainResult:
    """Train (`train`), and write the adapter, log.jsonl and metrics.json into `folder`.

    `job` goes into metrics.json beside the settings. The folder is claimed until training ends.

    Raises what `train` raises, and CheckpointError if another run writes into the folder.
    """
    with claimed(folder), JsonLines(folder / "log.jsonl") as log:
        result = train(
            model,
            train_set,
            eval_set,
            config,
            out=folder,
            save=model.save_pretrained,
            observers=[log, *observers],
        )
    write_metrics(folder / "metrics.json", config, result, job=job)
    return result
