"""The training loop: it learns, it repeats itself, it keeps the best, and it stops well."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

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
from tinygrad_peft.errors import ConfigError, DataError, TokenError, TrainingError
from tinygrad_peft.nn import Module, Transformer
from tinygrad_peft.peft import Host, get_peft_model, hookimpl
from tinygrad_peft.train import (
    Evaluated,
    Event,
    Observer,
    StepEnded,
    TrainConfig,
    TrainingEnded,
    TrainingStarted,
    TrainResult,
    evaluate,
    train,
)
from tinygrad_peft.train import hookspecs as train_hookspecs
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft_lora import LoraConfig

SHORT = TrainConfig(batch_size=4, epochs=2, lr=1e-2)


def run(
    model: Transformer, config: TrainConfig = SHORT, *, count: int = 24, tried: bool = True
) -> TrainResult:
    """A few steps on the needles."""
    return train(model, needles(count), needles(8, seed=1) if tried else None, config)


# ---------- learning ----------


@pytest.mark.slow
def test_a_classifier_learns_its_task() -> None:
    config = TrainConfig(epochs=6, batch_size=16, lr=1e-2)
    model, held_out = classifier(dropout=0.1), needles(100, seed=1)
    before = evaluate(model, held_out, batch_size=50)
    result = train(model, needles(400), held_out, config)
    assert before.accuracy is not None
    assert before.accuracy < 0.8
    assert result.best is not None
    assert result.best.accuracy == 1.0
    assert result.best.loss < 0.05


@pytest.mark.slow
def test_a_language_model_learns_its_task() -> None:
    config = TrainConfig(epochs=8, batch_size=16, lr=1e-2, schedule="cosine")
    model, held_out = language_model(), countings(50, seed=1)
    before = evaluate(model, held_out, batch_size=50)
    result = train(model, countings(200), held_out, config)
    assert before.loss > 2
    assert result.best is not None
    assert result.best.loss < 0.1
    logits = model(np.array([[3, 4, 5]])).data[0, -1]
    assert logits.argmax() == 6


def test_sgd_brings_the_loss_down_too() -> None:
    config = TrainConfig(epochs=10, batch_size=8, lr=0.3, optimizer="sgd", max_grad_norm=None)
    result = run(classifier(), config, count=64)
    assert np.mean(result.losses[-8:]) < 0.8 * np.mean(result.losses[:8])


# ---------- the same again ----------


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other = classifier(dropout=0.3), classifier(dropout=0.3)
    assert run(one).losses == run(other).losses
    assert same(weights(one), weights(other))


def test_a_model_that_ran_before_gives_the_same_bits_from_the_same_weights() -> None:
    model = classifier(dropout=0.3)
    start = weights(model)
    first = run(model).losses
    trained = weights(model)
    model.load_state_dict(start)
    next(model.parameters()).grad = np.ones_like(next(model.parameters()).data)  # is left over
    assert run(model).losses == first
    assert same(weights(model), trained)


def test_another_seed_gives_another_run() -> None:
    one = run(classifier(dropout=0.3), TrainConfig(batch_size=4, seed=0)).losses
    assert one != run(classifier(dropout=0.3), TrainConfig(batch_size=4, seed=1)).losses


def test_the_seed_reaches_dropout() -> None:
    def dropped(seed: int) -> tuple[float, ...]:
        config = TrainConfig(batch_size=4, seed=seed)
        return train(classifier(dropout=0.3), needles(4), None, config).losses

    assert dropped(0) != dropped(1)  # there is one batch, of the same examples
    assert dropped(0) == dropped(0)


def test_an_evaluation_does_not_change_later_steps() -> None:
    config = TrainConfig(batch_size=4, epochs=2, eval_every=1)
    one, other = classifier(dropout=0.3), classifier(dropout=0.3)
    assert run(one, config).losses == run(other, config, tried=False).losses


# ---------- accumulation ----------


@pytest.mark.parametrize(
    ("make", "examples"),
    [(classifier, needles(8)), (language_model, countings(8))],
    ids=["classifier", "language model"],
)
def test_a_step_over_two_batches_equals_a_step_over_one_large_batch(
    make: Callable[..., Transformer], examples: EncodedData
) -> None:
    one, two = make(dtype=np.float64), make(dtype=np.float64)
    whole = TrainConfig(batch_size=8, accumulation=1, epochs=3)
    halves = TrainConfig(batch_size=4, accumulation=2, epochs=3)
    # Batches are of like length, so that the halves have different numbers of labels.
    losses = train(one, examples, None, whole).losses
    assert train(two, examples, None, halves).losses == pytest.approx(losses, rel=1e-12)
    for path, array in one.state_dict().items():
        np.testing.assert_allclose(two.state_dict()[path], array, rtol=1e-8, atol=1e-10)


# ---------- what a step does ----------


def test_only_parameters_that_require_a_gradient_are_trained() -> None:
    model = classifier()
    for path, parameter in model.named_parameters():
        parameter.requires_grad = path.startswith("classifier")
    before = weights(model)
    result = run(model)
    moved = {path for path, array in weights(model).items() if (array != before[path]).any()}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert result.trainable_parameters == 2 * 16 + 2
    assert result.total_parameters == sum(array.size for array in before.values())


def test_the_learning_rate_follows_the_schedule() -> None:
    rates: list[float] = []
    config = TrainConfig(batch_size=4, epochs=2, lr=0.01, warmup=0.2, max_grad_norm=1e-9)
    note = lambda e: rates.extend(e.lrs) if isinstance(e, StepEnded) else None  # noqa: E731
    train(classifier(), needles(20), None, config, observers=[note])
    assert rates == pytest.approx([0, 0.005, 0.01, *(0.01 * k / 8 for k in range(7, 0, -1))])


def test_gradients_are_clipped_and_their_norm_is_reported_unclipped() -> None:
    norms = []
    note = lambda e: norms.append(e.grad_norm) if isinstance(e, StepEnded) else None  # noqa: E731
    model = classifier(dtype=np.float64)
    start = weights(model)
    config = TrainConfig(
        batch_size=8, optimizer="sgd", lr=1.0, warmup=0, schedule="constant", max_grad_norm=0.01
    )
    train(model, needles(8), None, config, observers=[note])
    moved = sum(float(((array - start[path]) ** 2).sum()) for path, array in weights(model).items())
    assert norms[0] > 0.01
    assert math.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_is_for_training_and_not_for_evaluation() -> None:
    model = classifier()
    config = TrainConfig(batch_size=8, max_steps=1, lr=1e-12, label_smoothing=0.5)  # and stands
    result = train(model, needles(8), needles(8), config)
    plain = evaluate(model, needles(8), batch_size=8).loss
    assert result.final is not None
    assert result.final.loss == plain
    assert result.losses[0] != pytest.approx(plain, rel=1e-3)


def test_a_model_is_left_in_evaluation_mode() -> None:
    model = classifier(dropout=0.5)
    run(model)
    assert not any(module.training for _, module in model.named_modules())


# ---------- evaluation and keeping the best ----------


@pytest.mark.parametrize(
    ("every", "tried"), [(0, [6, 12]), (4, [4, 8, 12]), (5, [5, 10, 12]), (99, [12])]
)
def test_the_model_is_tried_when_asked_and_at_the_end(every: int, tried: list[int]) -> None:
    result = run(classifier(), TrainConfig(batch_size=4, epochs=2, eval_every=every))
    assert [event.step for event in result.evaluations] == tried
    assert result.final == result.evaluations[-1]


def ruined_after(step: int, model: Transformer) -> Observer:
    """An observer that spoils the weights once that step is over."""

    def spoil(_event: Event) -> None:
        for parameter in model.parameters():
            parameter.data[:] = 0  # for good: no gradient comes through zeros

    return at_step(step, spoil)


def test_the_best_weights_are_kept_and_come_back(tmp_path: Path) -> None:
    model = language_model()
    config = TrainConfig(batch_size=4, epochs=2, eval_every=2, lr=1e-2)
    held_out = countings(8, seed=1)
    result = train(
        model,
        countings(24),
        held_out,
        config,
        out=tmp_path,
        save=saving(model),
        observers=[ruined_after(7, model)],
    )
    assert result.best is not None
    assert result.best.step == 6
    assert result.best == min(result.evaluations, key=lambda e: e.loss)
    assert [e.is_best for e in result.evaluations] == [True, True, True, False, False, False]
    assert same(weights(model), saved(tmp_path))
    assert evaluate(model, held_out, batch_size=4).loss == result.best.loss
    assert result.saved_to == tmp_path


def test_a_classifier_is_judged_by_accuracy_and_then_by_loss() -> None:
    result = run(
        classifier(dropout=0.2), TrainConfig(batch_size=4, epochs=6, lr=1e-2, eval_every=2)
    )
    best = max(result.evaluations, key=lambda e: (e.accuracy or 0, -e.loss))
    assert result.best == best
    assert len({e.accuracy for e in result.evaluations}) > 1


def test_without_an_evaluation_set_the_last_weights_are_kept(tmp_path: Path) -> None:
    model = classifier()
    result = train(model, needles(24), None, SHORT, out=tmp_path / "new", save=saving(model))
    assert result.evaluations == ()
    assert result.best is None
    assert result.final is None
    assert same(weights(model), saved(tmp_path / "new"))


# ---------- events and the result ----------


def test_observers_get_all_events_in_order() -> None:
    events: list[Event] = []
    model = classifier()
    result = train(model, needles(24), needles(8, seed=1), SHORT, observers=[events.append])
    epoch = [*[StepEnded] * 6, Evaluated]
    assert [type(e) for e in events] == [TrainingStarted, *epoch, *epoch, TrainingEnded]
    start, end = events[0], events[-1]
    assert isinstance(start, TrainingStarted)
    assert (start.steps, start.epochs) == (12, 2)
    assert (start.train_examples, start.eval_examples) == (24, 8)
    assert start.trainable_parameters == start.total_parameters == result.total_parameters
    assert isinstance(end, TrainingEnded)
    assert (end.outcome, end.step, end.saved_to) == ("finished", 12, None)
    steps = [e for e in events if isinstance(e, StepEnded)]
    assert [e.step for e in steps] == list(range(1, 13))
    assert [e.loss for e in steps] == list(result.losses)
    assert sum(e.tokens for e in steps) == result.tokens


def test_plugins_hear_of_each_step_of_an_adapted_model() -> None:
    heard: list[tuple[int, int, Module]] = []

    def step_ended(event: StepEnded) -> None:
        heard.append((event.step, event.total_steps, event.model))

    host = Host.installed()
    ear = SimpleNamespace(step_ended=hookimpl(train_hookspecs.step_ended)(step_ended))
    host.register(ear, "ear")
    peft = get_peft_model(classifier(), LoraConfig(target_modules=["q_proj"]), host=host)
    train(peft, needles(24), None, SHORT)
    assert [step for step, _, _ in heard] == list(range(1, 13))
    assert {total for _, total, _ in heard} == {12}
    assert all(model is peft for _, _, model in heard)


def test_the_result_counts_steps_and_tokens() -> None:
    examples = needles(24)
    result = run(classifier())
    assert not result.interrupted
    assert result.steps == len(result.losses) == 12
    assert result.tokens == 2 * sum(len(row.input_ids) for row in examples)
    assert result.tokens_per_second > result.tokens / result.seconds
    assert 0 < result.padding_share < 0.5
    assert result.peak_memory is None or result.peak_memory > 10_000_000


# ---------- what cannot be ----------


def test_out_without_save_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out and save: expected both or neither"):
        train(classifier(), needles(4), None, SHORT, out=tmp_path)


def test_data_is_checked_before_anything_happens() -> None:
    with pytest.raises(DataError, match="training examples: expected at least one"):
        train(classifier(), EncodedData([]), None, SHORT)
    with pytest.raises(DataError, match="evaluation examples: expected at least one"):
        train(classifier(), needles(4), EncodedData([]), SHORT)
    with pytest.raises(DataError, match="expected a class, got labels of tokens"):
        train(classifier(), needles(4), countings(4), SHORT)
    with pytest.raises(DataError, match=r"expected at most 2 tokens \(max_length\)"):
        train(classifier(), needles(4), None, TrainConfig(max_length=2))


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    model = classifier()
    model.freeze()
    with pytest.raises(TrainingError, match="nothing to train"):
        run(model)


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(TokenError, match="99"):
        train(classifier(), EncodedData([Encoded((1, 99), 0)]), None, SHORT)


# ---------- numbers that are no longer finite ----------


def test_a_loss_that_is_not_finite_stops_training_and_brings_the_last_good_back(
    tmp_path: Path,
) -> None:
    model = classifier()
    events: list[Event] = []
    config = TrainConfig(batch_size=4, epochs=2, eval_every=3, lr=1e-2)

    def blow_up(_event: Event) -> None:
        next(model.parameters()).data[:] = np.inf

    with pytest.raises(TrainingError) as error:
        train(
            model,
            needles(24),
            needles(8),
            config,
            out=tmp_path,
            save=saving(model),
            observers=[events.append, at_step(8, blow_up)],
        )
    kept = max(e.step for e in events if isinstance(e, Evaluated) and e.is_best)
    rate = 0.01 * 4 / 11
    place = f"step 9, learning rate {rate:.3g}"
    assert str(error.value) == (
        f"training stopped in epoch 2, batch 3: the loss is nan ({place}); "
        f"the last good checkpoint, of step {kept}, is kept in {tmp_path} and in the model"
    )
    assert same(weights(model), saved(tmp_path))
    assert all(np.isfinite(array).all() for array in weights(model).values())
    assert all(parameter.grad is None for parameter in model.parameters())
    last = events[-1]
    assert isinstance(last, TrainingEnded)
    assert last.outcome == "diverged"


def test_a_learning_rate_much_too_large_stops_training_at_the_start() -> None:
    model = classifier()
    start = weights(model)
    config = TrainConfig(batch_size=4, lr=1e30, optimizer="sgd", warmup=0.0)
    with pytest.raises(TrainingError) as error:
        run(model, config)
    message = str(error.value)
    assert "training stopped in epoch 1, batch 2: the loss is nan (step 2, learning rate" in message
    assert "the model has its last good weights again, of the start; nothing was saved" in message
    assert same(weights(model), start)


def test_a_gradient_that_is_not_finite_stops_training() -> None:
    model = classifier()
    state = model.state_dict()
    # Zeros times the largest weights are a finite loss, whose gradient squared is past all floats.
    state["blocks.0.mlp_norm.weight"][:] = 0
    state["blocks.0.mlp_norm.bias"][:] = 0
    state["classifier.weight"] *= np.float32(1e30)
    message = r"epoch 1, batches 1 to 2: the norm of the gradient is inf \(step 1, learning rate"
    with pytest.raises(TrainingError, match=message):
        run(model, TrainConfig(batch_size=4, accumulation=2))


def test_an_evaluation_loss_that_is_not_finite_stops_training() -> None:
    model = classifier()

    def blow_up(_event: Event) -> None:
        model.state_dict()["embed_positions.weight"][15] = 3e38  # where only long texts get to

    long = EncodedData([Encoded((1,) * 16, 0)])
    with pytest.raises(TrainingError, match="the evaluation loss is nan after step 2"):
        train(
            model,
            needles(8),
            long,
            TrainConfig(batch_size=4),
            observers=[at_step(2, blow_up)],
        )


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    model = classifier()

    def blow_up(_event: Event) -> None:
        model.state_dict()["embed_positions.weight"][15] = np.inf

    with pytest.raises(TrainingError, match="the weights are not finite after step 2"):
        train(
            model,
            needles(8),
            None,
            TrainConfig(batch_size=4),
            out=tmp_path / "out",
            save=saving(model),
            observers=[at_step(2, blow_up)],
        )
    assert not (tmp_path / "out").exists()
