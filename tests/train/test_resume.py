"""A run that was broken off goes on to the bits of an unbroken one."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train import shrinking
from tests.train.shrinking import ShrinkingConfig
from tests.train.toys import (
    at_step,
    classifier,
    countings,
    language_model,
    needles,
    same,
    saved,
    saving,
    weights,
)
from tinygrad_peft.errors import CheckpointError, ConfigError
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model
from tinygrad_peft.train import (
    Event,
    Observer,
    TrainConfig,
    TrainingStarted,
    TrainResult,
    loop,
    train,
)
from tinygrad_peft.train.checkpoints import CHECKPOINTS
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft.train.run_state import RunState
from tinygrad_peft_adalora import AdaLoraConfig
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig
from tinygrad_peft_qlora import QuantizeConfig
from tinygrad_peft_vera import VeraConfig

SETTINGS = TrainConfig(batch_size=4, epochs=2, lr=1e-2, eval_every=3, save_every=2)  # 8 steps
TARGETS = ("q_proj", "v_proj")
LORA = LoraConfig(r=2, target_modules=TARGETS, lora_dropout=0.3)


class Killed(BaseException):
    """The process is gone: nobody catches it."""


def kill(_event: Event) -> None:
    raise Killed


def host() -> Host:
    found = Host.installed()
    found.register(shrinking, "shrinking")
    return found


def adapted_classifier(*recipe: PeftConfig) -> PeftModel:
    return get_peft_model(classifier(dropout=0.2), list(recipe), host=host())


def run(
    folder: Path,
    model: PeftModel,
    config: TrainConfig = SETTINGS,
    *,
    broken_after: int = 0,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train into a folder; the process ends after a step, if one is named."""
    return train_into(
        folder,
        model,
        needles(16),
        needles(8, seed=1),
        config,
        observers=[at_step(broken_after, kill), *observers],
        resume=resume,
    )


def content(folder: Path) -> dict[str, object]:
    """All files of a folder, without times and paths."""
    files: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name, read = str(path.relative_to(folder)), path.read_bytes()
            if name == "log.jsonl":
                files[name] = [timeless(json.loads(line)) for line in read.splitlines()]
            else:
                files[name] = timeless(json.loads(read)) if name == "metrics.json" else read
    return files


def timeless(value: object) -> object:
    if isinstance(value, dict):
        other = ("seconds", "tokens_per_second", "peak_memory", "saved_to")
        return {k: timeless(v) for k, v in value.items() if k not in other}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def facts(result: TrainResult) -> TrainResult:
    """A result without times and paths."""
    evaluations = tuple(dataclasses.replace(e, seconds=0.0) for e in result.evaluations)
    best = dataclasses.replace(result.best, seconds=0.0) if result.best else None
    return dataclasses.replace(
        result,
        evaluations=evaluations,
        best=best,
        seconds=0.0,
        tokens_per_second=0.0,
        peak_memory=None,
        saved_to=None,
    )


RECIPES: dict[str, list[PeftConfig]] = {
    "lora": [LORA],
    "dora": [dataclasses.replace(LORA, use_dora=True)],
    "qlora": [QuantizeConfig(target_modules=TARGETS), LORA],
    "adalora": [
        AdaLoraConfig(
            init_r=4,
            target_r=2,
            tinit=1,
            tfinal=2,
            target_modules=TARGETS,
            lora_dropout=0.2,
        )
    ],
    "shrinking": [ShrinkingConfig(target_modules=TARGETS)],
    "vera": [VeraConfig(r=4, target_modules=TARGETS, vera_dropout=0.2)],
    "adapter, head, norms and (IA)³": [
        BottleneckAdapterConfig(bottleneck_dim=4, dropout=0.2, modules_to_save=["classifier"]),
        LNTuningConfig(),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ],
    "prefix and prompt": [
        PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=8),
        PromptTuningConfig(num_virtual_tokens=2),
    ],
}


@pytest.fixture(autouse=True)
def patient_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the process is not really killed here."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def check_bits(tmp_path: Path, recipe: list[PeftConfig], steps: Iterable[int]) -> None:
    """Break a run after some of its steps, one at a time, and compare it with an unbroken one."""
    whole = run(tmp_path / "whole", adapted_classifier(*recipe))
    assert len(whole.losses) == 8
    for step in steps:
        folder = tmp_path / f"broken after {step}"
        with pytest.raises(Killed):
            run(folder, adapted_classifier(*recipe), broken_after=step)
        resumed = run(folder, adapted_classifier(*recipe), resume=True)
        assert facts(resumed) == facts(whole)
        assert content(folder) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora", "shrinking"])
def test_a_run_broken_after_any_step_goes_on_to_the_same_bits(tmp_path: Path, method: str) -> None:
    check_bits(tmp_path, RECIPES[method], range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in RECIPES if name != "lora"])
def test_every_method_goes_on_to_the_same_bits(tmp_path: Path, method: str) -> None:
    check_bits(tmp_path, RECIPES[method], [7])


# ---------- other models and settings ----------


def train_whole(
    folder: Path | None,
    model: Transformer,
    config: TrainConfig,
    *,
    broken_after: int = 0,
    resume: bool | Path = False,
    data: Callable[..., EncodedData] = needles,
    tried: bool = True,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train all weights of a model; the process ends after a step, if one is named."""
    return train(
        model,
        data(16),
        data(8, seed=1) if tried else None,
        config,
        out=folder,
        save=saving(model) if folder else None,
        observers=[at_step(broken_after, kill), *observers],
        resume=resume,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation": 2, "save_every": 1},
        {"optimizer": "sgd", "schedule": "cosine", "weight_decay": 0.1, "label_smoothing": 0.1},
        {"eval_every": 0, "max_steps": 7, "save_every": 1},
        {"eval_every": 1, "warmup": 0.0, "schedule": "constant"},
    ],
)
@pytest.mark.parametrize("tried", [True, False])
def test_whole_models_go_on_to_the_same_bits_under_other_settings(
    tmp_path: Path, settings: dict[str, Any], *, tried: bool
) -> None:
    config = dataclasses.replace(SETTINGS, **settings)
    model = classifier(dropout=0.3)
    whole = train_whole(None, model, config, tried=tried)
    with pytest.raises(Killed):
        train_whole(tmp_path, classifier(dropout=0.3), config, tried=tried, broken_after=3)
    again = classifier(dropout=0.3)
    resumed = train_whole(tmp_path, again, config, tried=tried, resume=True)
    assert facts(resumed) == facts(whole)
    assert same(weights(again), weights(model))
    assert same(weights(again), saved(tmp_path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_language_model_goes_on_to_the_same_bits(
    tmp_path: Path, dtype: type[np.floating]
) -> None:
    model, again = language_model(dtype=dtype), language_model(dtype=dtype)
    whole = train_whole(None, model, SETTINGS, data=countings)
    with pytest.raises(Killed):
        train_whole(tmp_path, language_model(dtype=dtype), SETTINGS, data=countings, broken_after=5)
    assert facts(train_whole(tmp_path, again, SETTINGS, data=countings, resume=True)) == facts(
        whole
    )
    assert same(weights(again), weights(model))


def test_a_run_without_a_folder_goes_on_from_the_path_of_a_checkpoint(tmp_path: Path) -> None:
    model, again = classifier(dropout=0.3), classifier(dropout=0.3)
    whole = train_whole(None, model, SETTINGS)
    with pytest.raises(Killed):
        train_whole(tmp_path, classifier(dropout=0.3), SETTINGS, broken_after=5)
    older = tmp_path / CHECKPOINTS / "step-00000002"
    assert facts(train_whole(None, again, SETTINGS, resume=older)) == facts(whole)
    assert same(weights(again), weights(model))


# ---------- stopped more than once, and by signals ----------


def test_a_run_that_is_broken_many_times_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", adapted_classifier(LORA))
    folder = tmp_path / "broken"
    for step in (2, 3, 5, 5, 8):
        with pytest.raises(Killed):
            run(folder, adapted_classifier(LORA), broken_after=step, resume=folder.exists())
    assert facts(run(folder, adapted_classifier(LORA), resume=True)) == facts(whole)
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = run(tmp_path / "whole", adapted_classifier(LORA))
    folder = tmp_path / "stopped"
    stop = at_step(step, lambda _event: signal.raise_signal(signal.SIGTERM))
    stopped = run(folder, adapted_classifier(LORA), observers=[stop])
    assert (stopped.stopped_by, stopped.steps) == (signal.SIGTERM, step)
    assert facts(run(folder, adapted_classifier(LORA), resume=True)) == facts(whole)
    assert content(folder) == content(tmp_path / "whole")


def test_files_of_others_beside_interrupted_weights_stay(tmp_path: Path) -> None:
    stop = at_step(5, lambda _event: signal.raise_signal(signal.SIGTERM))
    stopped = run(tmp_path, adapted_classifier(LORA), observers=[stop])
    assert stopped.saved_to == tmp_path / "interrupted"
    (tmp_path / "interrupted" / "notes.txt").write_text("theirs")
    run(tmp_path, adapted_classifier(LORA), resume=True)
    assert [path.name for path in (tmp_path / "interrupted").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_run_interrupted_within_an_evaluation_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", adapted_classifier(LORA))
    folder = tmp_path / "stopped"

    def interrupted(*_given: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", interrupted)
        stopped = run(folder, adapted_classifier(LORA))
    assert (stopped.steps, stopped.evaluations) == (3, ())
    # It goes on, is killed before the next checkpoint, and makes the evaluation once more.
    seldom = dataclasses.replace(SETTINGS, save_every=8)
    with pytest.raises(Killed):
        run(folder, adapted_classifier(LORA), seldom, broken_after=5, resume=True)
    assert facts(run(folder, adapted_classifier(LORA), resume=True)) == facts(whole)
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_while_it_saves_a_checkpoint_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", adapted_classifier(LORA))
    folder = tmp_path / "broken"
    write = RunState.write

    def half_written(state: RunState, made: Path) -> None:
        write(state, made)
        if state.stepper.done == 6:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "write", half_written)
        with pytest.raises(Killed):
            run(folder, adapted_classifier(LORA))
    assert checkpoints(folder) == ["step-00000002", "step-00000004"]
    starts: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, TrainingStarted):
            starts.append(event.step)

    assert facts(run(folder, adapted_classifier(LORA), resume=True, observers=[note])) == facts(
        whole
    )
    assert starts == [4]
    assert content(folder) == content(tmp_path / "whole")


# ---------- which checkpoints there are ----------


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / CHECKPOINTS).iterdir())


def test_the_newest_checkpoints_are_kept_until_the_run_is_finished(tmp_path: Path) -> None:
    config = dataclasses.replace(SETTINGS, save_every=1, keep=3)
    with pytest.raises(Killed):
        run(tmp_path, adapted_classifier(LORA), config, broken_after=7)
    assert checkpoints(tmp_path) == [f"step-0000000{step}" for step in (4, 5, 6)]
    run(tmp_path, adapted_classifier(LORA), dataclasses.replace(config, keep=1), resume=True)
    assert not (tmp_path / CHECKPOINTS).exists()


def test_files_of_others_in_the_folder_of_checkpoints_stay(tmp_path: Path) -> None:
    theirs = tmp_path / CHECKPOINTS / "checkpoint-500" / "weights.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    (tmp_path / CHECKPOINTS / "step-00000099").write_text("a note")
    (tmp_path / CHECKPOINTS / "step-00000098").symlink_to(theirs.parent)
    run(tmp_path, adapted_classifier(LORA))
    assert checkpoints(tmp_path) == ["checkpoint-500", "step-00000098", "step-00000099"]
    assert theirs.read_text() == "theirs"


def test_checkpoints_may_be_on_another_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CHECKPOINTS).symlink_to(disk)
    broken_run(tmp_path / "out")
    assert [path.name for path in sorted(disk.iterdir())] == ["step-00000004", "step-00000006"]
    run(tmp_path / "out", adapted_classifier(LORA), resume=True)
    assert list(disk.iterdir()) == []


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    config = dataclasses.replace(SETTINGS, save_every=0)
    with pytest.raises(Killed):
        run(tmp_path, adapted_classifier(LORA), config, broken_after=7)
    assert not (tmp_path / CHECKPOINTS).exists()


def test_by_time_a_checkpoint_is_written_before_too_much_work_can_be_lost(tmp_path: Path) -> None:
    config = dataclasses.replace(SETTINGS, save_every=None, save_minutes=1e-6)
    with pytest.raises(Killed):
        run(tmp_path / "often", adapted_classifier(LORA), config, broken_after=6)
    assert checkpoints(tmp_path / "often") == ["step-00000004", "step-00000005"]
    usual = dataclasses.replace(SETTINGS, save_every=None)
    with pytest.raises(Killed):
        run(tmp_path / "usual", adapted_classifier(LORA), usual, broken_after=6)
    assert not (tmp_path / "usual" / CHECKPOINTS).exists()


def broken_run(folder: Path) -> None:
    with pytest.raises(Killed):
        run(folder, adapted_classifier(LORA), broken_after=7)


def test_a_broken_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole", adapted_classifier(LORA))
    folder = tmp_path / "broken"
    broken_run(folder)
    newest, older = (folder / CHECKPOINTS / f"step-0000000{step}" for step in (6, 4))
    array = newest / "state.safetensors"
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    assert facts(run(folder, adapted_classifier(LORA), resume=True)) == facts(whole)
    assert content(folder) == content(tmp_path / "whole")
    assert f"going on from {older}: newer ones are broken" in caplog.text
    assert "state.safetensors: expected the file that was written, got another" in caplog.text


def test_without_a_checkpoint_that_can_be_read_all_are_listed(tmp_path: Path) -> None:
    broken_run(tmp_path)
    for step in (4, 6):
        (tmp_path / CHECKPOINTS / f"step-0000000{step}" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint is broken") as error:
        run(tmp_path, adapted_classifier(LORA), resume=True)
    assert str(error.value).count("missing required field") == 2


# ---------- runs that cannot go on ----------


def test_a_run_with_other_settings_data_or_weights_is_refused_with_all_differences(
    tmp_path: Path,
) -> None:
    broken_run(tmp_path)
    before = checkpoints(tmp_path)
    other = dataclasses.replace(SETTINGS, lr=2e-2, epochs=3, keep=5, save_every=1)
    model = classifier(dropout=0.1)
    next(model.parameters()).data[0] += 1
    peft = get_peft_model(model, dataclasses.replace(LORA, r=4), host=host())
    with pytest.raises(ConfigError) as error:
        train_into(tmp_path, peft, needles(16, seed=5), needles(8), other, resume=True)
    assert str(error.value).splitlines() == [
        f"{tmp_path / CHECKPOINTS / 'step-00000006'} is of a run that differs:",
        "  - settings: epochs: expected 2, as the run has, got 3",
        "  - settings: lr: expected 0.01, as the run has, got 0.02",
        "  - training examples: expected those of the run, got others",
        "  - evaluation examples: expected those of the run, got others",
        "  - recipe: step 1: r: expected 2, as the run has, got 4",
        "  - model: hidden_dropout: expected 0.2, as the run has, got 0.1",
        "  - frozen weights: expected those of the run, got others",
    ]
    assert checkpoints(tmp_path) == before
    run(tmp_path, adapted_classifier(LORA), resume=True)


def test_a_new_run_does_not_overwrite_the_checkpoints_of_another(tmp_path: Path) -> None:
    broken_run(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="has an unfinished run, stopped after step 6: go on"):
        run(tmp_path, adapted_classifier(LORA))
    with pytest.raises(ConfigError, match="has an unfinished run"):
        train_whole(tmp_path, classifier(), SETTINGS)
    assert content(tmp_path) == before


def test_a_run_stopped_before_its_first_checkpoint_begins_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, adapted_classifier(LORA), broken_after=1)
    run(tmp_path, adapted_classifier(LORA), resume=True)
    assert caplog.messages == [
        f"{tmp_path}: the run was stopped before its first checkpoint: it begins anew"
    ]


def test_where_nothing_was_begun_or_all_is_finished_there_is_nothing_to_resume(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match="has no run to resume: expected checkpoints or log"):
        run(tmp_path / "nowhere", adapted_classifier(LORA), resume=True)
    assert not (tmp_path / "nowhere").exists()
    run(tmp_path, adapted_classifier(LORA))
    with pytest.raises(ConfigError, match="the run is finished, and there is nothing to resume"):
        run(tmp_path, adapted_classifier(LORA), resume=True)


def test_resuming_needs_a_folder_or_a_checkpoint_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume: expected a folder"):
        train_whole(None, classifier(), SETTINGS, resume=True)
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        train_whole(tmp_path, classifier(), SETTINGS, resume=True)
    with pytest.raises(ConfigError, match=f"resume: expected a checkpoint in {tmp_path}"):
        train_whole(tmp_path, classifier(), SETTINGS, resume=tmp_path / "elsewhere")
