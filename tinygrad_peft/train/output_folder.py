"""A training run that writes its files into a folder."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.files import claimed, read_json_object
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.train.checkpoints import CHECKPOINTS, has_checkpoints, refuse_unfinished
from tinygrad_peft.train.config import TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.events import Observer
from tinygrad_peft.train.log import JsonLines, write_metrics
from tinygrad_peft.train.loop import prepare_run
from tinygrad_peft.train.result import TrainResult

__all__ = ["check_folder", "train_into"]

logger = logging.getLogger(__name__)

LOG, METRICS = "log.jsonl", "metrics.json"


def train_into(
    folder: Path,
    model: PeftModel,
    train_set: EncodedData,
    eval_set: EncodedData | None,
    config: TrainConfig,
    *,
    observers: Sequence[Observer] = (),
    job: Mapping[str, object] | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train (`train`), and write the adapter, log.jsonl and metrics.json into `folder`.

    `job` goes into metrics.json beside the settings. The folder is claimed until training ends.
    With `resume` a run that was stopped before its first checkpoint begins anew, with a warning.

    Raises what `train` raises, ConfigError if the run to resume is finished, and CheckpointError if
    another run writes into the folder.
    """
    check_folder(folder, resume=resume)
    with claimed(folder), JsonLines(folder / LOG) as log:
        run = prepare_run(
            model,
            train_set,
            eval_set,
            config,
            out=folder,
            save=model.save_pretrained,
            observers=[log, *observers],
            resume=resume and not _is_before_first_checkpoint(folder),
        )
        result = run.fit()
        write_metrics(folder / METRICS, config, result, job=job)
        if not result.interrupted:
            run.discard_checkpoints()
    return result


def check_folder(folder: Path, *, resume: bool) -> None:
    """Check, before anything slow, that a run can begin in a folder, or go on with `resume`.

    Raises ConfigError where a new run would lose the checkpoints of another, or the run to resume
    is finished, and CheckpointError where there is no run to resume.
    """
    if not resume:
        refuse_unfinished(folder)
    elif has_checkpoints(folder):
        return
    elif _is_finished(folder):
        raise ConfigError(f"{folder}: the run is finished, and there is nothing to resume")
    elif not (folder / LOG).exists():
        raise CheckpointError(f"{folder} has no run to resume: expected {CHECKPOINTS} or {LOG}")


def _is_finished(folder: Path) -> bool:
    path = folder / METRICS
    return path.exists() and read_json_object(path).get("outcome") == "finished"


def _is_before_first_checkpoint(folder: Path) -> bool:
    """Return True, and warn, if a run that began in a folder was stopped before it saved itself."""
    if has_checkpoints(folder):
        return False
    logger.warning("%s: the run was stopped before its first checkpoint: it begins anew", folder)
    return True
