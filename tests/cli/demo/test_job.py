"""The demo's job, on a model that is trained here."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the text extra")

from tests.cli.demo.tiny import TINY, say_nothing
from tinygrad_peft.cli.contenders import parse_contenders
from tinygrad_peft.cli.demo.job import PROBE, Outcome, run_job
from tinygrad_peft.cli.demo.offline import (
    OfflineSizes,
    offline_job,
)
from tinygrad_peft.cli.demo.recipes import demo_recipes
from tinygrad_peft.errors import PeftError
from tinygrad_peft.models import load_model, load_tokenizer
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftModel
from tinygrad_peft.train.comparison_result import read_comparison

METHODS = ("lora", "adapter", "prefix_tuning", "prompt_tuning", "qlora")
PLOT = find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[str]]:
    """A job of a tiny model, its folder, and its lines of progress."""
    out, said = tmp_path_factory.mktemp("demo"), list[str]()
    return run_job(offline_job(TINY, said.append), out, said.append), out, said


def test_the_job_tries_every_method_on_the_same_test_set(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, out, _ = finished
    probe, *rows = outcome.comparison.rows
    assert (probe.label, probe.trainable) == (PROBE, 16 * 2 + 2)
    assert [row.outcome for row in rows] == ["finished"] * 6
    assert rows[0].trainable == 2 * 8 * (16 + 16) + 16 * 2 + 2
    assert outcome.merged.tested == 24
    assert read_comparison(out / "comparison.json") == outcome.comparison
    assert (out / "comparison.png").exists() == PLOT


@pytest.mark.parametrize("specs", [demo_recipes("real"), demo_recipes("offline")])
def test_the_recipes_are_the_five_methods_and_a_composition(specs: Sequence[str]) -> None:
    contenders = parse_contenders(specs, Host.installed())
    names = [tuple(c.peft_type.lower() for c in contender.recipe) for contender in contenders]
    assert names[:5] == [(name,) for name in METHODS]
    assert all(len(name) > 1 for name in names[5:])


def test_the_merged_checkpoint_predicts_what_the_adapted_model_does(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, _, _ = finished
    assert outcome.merged.equal == 24
    assert outcome.merged.largest_difference < 1e-5


def test_the_saved_adapter_and_the_merged_model_are_the_same_model(
    finished: tuple[Outcome, Path, list[str]],
) -> None:
    outcome, out, _ = finished
    folder = outcome.merged.folder
    merged, base = load_model(folder), pretrained_again()
    adapted = PeftModel.from_pretrained(base, out / "2-lora", host=Host.installed())
    ids = np.array([load_tokenizer(folder).encode("the plot was not very good")])
    np.testing.assert_allclose(merged(ids).data, adapted(ids).data, atol=1e-5)


def pretrained_again() -> Transformer:
    """The base of the tiny job, which comes out the same each time, with the head of the task."""
    model = offline_job(TINY, say_nothing).model
    model.with_classifier(("negative", "positive"))
    return model


def test_job_reports_each_part_as_it_begins(finished: tuple[Outcome, Path, list[str]]) -> None:
    _, _, said = finished
    assert said == [
        "pretraining a small model on 48 plain statements",
        "a small model on made-up reviews: 48 to train on, 24 to test on",
        "merging the first adapter, and reading the merged checkpoint back",
    ]


def test_a_recipe_that_fails_ends_the_demo(tmp_path: Path) -> None:
    job = offline_job(TINY, say_nothing)
    wild = replace(job, recipes=["lora @ lr=3e38, label=wild"])
    with pytest.raises(PeftError, match="wild failed: training stopped"):
        run_job(wild, tmp_path, say_nothing)


@pytest.mark.slow
def test_lora_learns_what_the_probe_of_the_small_model_cannot(tmp_path: Path) -> None:
    job = offline_job(OfflineSizes(), say_nothing)
    outcome = run_job(replace(job, recipes=job.recipes[:1]), tmp_path, say_nothing)
    probe, lora = (row.accuracy or 0 for row in outcome.comparison.rows)
    assert probe < 0.8
    assert lora > probe + 0.1
    assert outcome.merged.equal == outcome.merged.tested == 600
