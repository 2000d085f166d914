"""Terms that plugins add to the loss."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.train.toys import adapted, countings, language_model, needles
from tinygrad_peft.errors import PluginError, TrainingError
from tinygrad_peft.nn import Module
from tinygrad_peft.peft import PeftModel, hookimpl
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import Evaluated, Event, StepEnded, TrainConfig, evaluate, hookspecs, train
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft.train.progress import evaluation_line, progress_display
from tinygrad_peft_lora import LoraLinear

ONE_STEP = TrainConfig(
    batch_size=8, optimizer="sgd", lr=1.0, warmup=0, schedule="constant", max_grad_norm=None
)


def adding(answer: Callable[[Module], Tensor | None]) -> object:
    """A plugin with that extra loss."""

    def extra_loss(model: Module) -> Tensor | None:
        return answer(model)

    return SimpleNamespace(extra_loss=hookimpl(hookspecs.extra_loss)(extra_loss))


def decay(model: Module) -> Tensor:
    """Half the squared size of all that is trained: its gradient is the weights."""
    total = Tensor(np.zeros(()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            total = total + (parameter * parameter).sum() * 0.5
    return total


def trained(peft: PeftModel) -> list[np.ndarray]:
    return [p.data.copy() for p in peft.trainable_parameters()]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_an_extra_loss_is_added_with_its_gradient_once_per_step(accumulation: int) -> None:
    config = replace(ONE_STEP, batch_size=6 // accumulation, accumulation=accumulation)
    asked: list[Module] = []

    def counted(model: Module) -> Tensor:
        asked.append(model)
        return decay(model)

    plain, decayed = adapted(), adapted(adding(counted), adding(decay))
    start = trained(plain)
    size = sum(float((w.astype(float) ** 2).sum()) for w in start) / 2
    without = train(plain, needles(6), None, config)
    result = train(decayed, needles(6), None, config)
    assert len(asked) == 1
    assert result.extra_losses == pytest.approx({"plugin-0": size, "plugin-1": size})
    assert result.losses[0] == pytest.approx(without.losses[0] + 2 * size)
    for old, moved, other in zip(start, trained(plain), trained(decayed), strict=True):
        np.testing.assert_allclose(other, moved - 2 * old, rtol=1e-5, atol=1e-6)


def test_an_extra_loss_may_use_values_that_modules_keep_from_the_last_pass() -> None:
    peft = adapted(model=language_model())
    kept: list[Tensor] = []

    class Keeping(LoraLinear):
        def __call__(self, x: Tensor) -> Tensor:
            kept[:] = [super().__call__(x)]
            return kept[0]

    for _, module in peft.named_modules():
        if isinstance(module, LoraLinear):
            module.__class__ = Keeping
    peft.host.register(adding(lambda _model: (kept[0] * kept[0]).mean()), "activity")
    config = TrainConfig(batch_size=4, lr=1e-2, accumulation=2)
    result = train(peft, countings(16), countings(4), config)
    assert result.extra_losses["activity"] > 0
    assert result.evaluations[0].extra_losses["activity"] > 0


def test_a_constant_is_reported_and_moves_nothing() -> None:
    plain, constant = adapted(), adapted(adding(lambda _model: Tensor(np.array(2.0))))
    without, result = (train(p, needles(8), None, ONE_STEP) for p in (plain, constant))
    assert result.losses[0] == without.losses[0] + 2
    for moved, other in zip(trained(plain), trained(constant), strict=True):
        np.testing.assert_array_equal(other, moved)


def test_an_evaluation_reports_extra_losses_separately() -> None:
    peft = adapted(adding(decay), model=language_model())
    held_out = countings(4)
    result = train(peft, countings(8), held_out, TrainConfig(batch_size=4, lr=1e-2))
    [event] = result.evaluations
    assert event.loss == evaluate(peft, held_out, batch_size=4).loss
    assert event.perplexity == pytest.approx(math.exp(event.loss))
    assert event.extra_losses == pytest.approx({"plugin-0": decay(peft).item()})


def test_extra_losses_are_named_in_the_log_the_metrics_and_the_progress(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peft = adapted(adding(decay))
    with progress_display(live=False) as display:
        result = train_into(
            tmp_path, peft, needles(8), needles(4), TrainConfig(batch_size=4), observers=[display]
        )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    named = [line["extra_losses"] for line in lines if "extra_losses" in line]
    assert [[*names] for names in named] == [["plugin-0"]] * 3
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["extra_losses"] == result.extra_losses == named[1]
    assert metrics["best"]["extra_losses"] == named[2]
    assert f"plugin-0 {named[2]['plugin-0']:.4f}, accuracy" in capfd.readouterr().err


def test_a_line_of_an_evaluation_names_them_after_the_loss() -> None:
    event = Evaluated(
        step=1,
        epoch=1.0,
        loss=0.5,
        accuracy=None,
        perplexity=None,
        seconds=1.0,
        is_best=False,
        extra_losses={"balance": 0.25},
    )
    assert evaluation_line(event, 2) == "step 1/2: loss 0.5000, balance 0.2500"


def test_several_terms_of_one_plugin_are_added_up() -> None:
    mark = hookimpl(hookspecs.extra_loss)

    def one(model: Module) -> Tensor | None:
        return Tensor(np.array(1.0))

    def two(model: Module) -> Tensor | None:
        return Tensor(np.array(2.0))

    peft = adapted(SimpleNamespace(one=mark(one), two=mark(two)))
    assert train(peft, needles(8), None, ONE_STEP).extra_losses == {"plugin-0": 3.0}


def test_none_adds_nothing() -> None:
    plain, silent = adapted(), adapted(adding(lambda _model: None))
    one, other = (train(p, needles(8), None, ONE_STEP) for p in (plain, silent))
    assert one.losses == other.losses
    assert other.extra_losses == {}
    for moved, same in zip(trained(plain), trained(silent), strict=True):
        np.testing.assert_array_equal(moved, same)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_extra_loss_that_is_not_finite_stops_training_and_is_named(value: float) -> None:
    peft = adapted(adding(lambda _model: Tensor(np.array(value))))
    start = trained(peft)
    message = (
        rf"training stopped in epoch 1, batch 1: expected finite extra losses, got {value} of "
        r"'plugin-0' \(step 1, learning rate 1\)"
    )
    with pytest.raises(TrainingError, match=message):
        train(peft, needles(8), None, ONE_STEP)
    for old, now in zip(start, trained(peft), strict=True):
        np.testing.assert_array_equal(old, now)


def test_an_extra_loss_that_is_not_finite_in_an_evaluation_stops_training() -> None:
    peft = adapted()

    def answer(model: Module) -> Tensor:
        return Tensor(np.array(1.0 if model.training else math.nan))

    peft.host.register(adding(answer), "odd")
    message = r"training stopped: expected finite extra losses, got nan of 'odd' \(after step 1\)"
    with pytest.raises(TrainingError, match=message):
        train(peft, needles(8), needles(8), ONE_STEP)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(Tensor(np.zeros(1)), r"a scalar, got shape \(1,\)"), (0.5, "Tensor or None, got 0.5")],
    ids=["a vector", "a number"],
)
def test_an_answer_that_is_not_a_scalar_tensor_is_refused(answer: Tensor, problem: str) -> None:
    peft = adapted(adding(lambda _model: answer))
    message = f"plugin 'plugin-0', hook extra_loss: expected {problem}"
    with pytest.raises(PluginError, match=message):
        train(peft, needles(8), None, ONE_STEP)


def test_observers_get_the_terms_of_each_step() -> None:
    events: list[Event] = []
    peft = adapted(adding(decay))
    train(peft, needles(8), None, TrainConfig(batch_size=4), observers=[events.append])
    steps = [e for e in events if isinstance(e, StepEnded)]
    assert all(0 < e.extra_losses["plugin-0"] < e.loss for e in steps)
