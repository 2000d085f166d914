"""The hooks of training, as a plugin's author uses them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.train import shrinking
from tests.train.shrinking import ShrinkingConfig, ShrinkingLinear
from tests.train.toys import adapted, at_step, countings, language_model, needles, same, weights
from tinygrad_peft.errors import ConfigError, PeftError, PluginError, TrainingError
from tinygrad_peft.peft import (
    Combination,
    Combined,
    ForeignRequest,
    ForeignStep,
    Host,
    PeftConfig,
    PeftModel,
    count_recipe,
    get_peft_model,
    hookimpl,
    inspect_path,
)
from tinygrad_peft.peft import hookspecs as peft_hookspecs
from tinygrad_peft.train import (
    Event,
    StepEnded,
    Stepper,
    TrainConfig,
    TrainingEnded,
    evaluate,
    hookspecs,
    make_batch,
    train,
)
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prompt import PromptTuningConfig

SHORT = TrainConfig(batch_size=4, epochs=2, lr=1e-2)


# ---------- step_ended ----------


def test_a_hook_that_fails_after_a_step_leaves_no_gradients_to_the_next() -> None:
    def step_ended(event: StepEnded) -> None:
        raise ValueError(f"after step {event.step}")

    peft = adapted(SimpleNamespace(f=hookimpl(hookspecs.step_ended)(step_ended)))
    stepper = Stepper(peft, SHORT, total_steps=2)
    with pytest.raises(PluginError, match="ValueError: after step 1"):
        stepper.step(make_batch(needles(4)))
    assert all(parameter.grad is None for parameter in peft.parameters())


def test_plugins_see_the_clipped_gradients_and_the_moved_weights_before_observers() -> None:
    seen: list[object] = []
    peft = adapted()
    config = TrainConfig(
        batch_size=8, optimizer="sgd", lr=1.0, warmup=0, schedule="constant", max_grad_norm=0.01
    )
    start = [p.data.copy() for p in peft.trainable_parameters()]

    def step_ended(event: StepEnded) -> None:
        for old, weight in zip(start, peft.trainable_parameters(), strict=True):
            assert weight.grad is not None
            np.testing.assert_array_equal(weight.data, old - weight.grad)
        norms = [np.linalg.norm(p.grad) for p in peft.trainable_parameters() if p.grad is not None]
        assert event.grad_norm > 0.01
        assert np.linalg.norm(norms) == pytest.approx(0.01, rel=1e-3)
        seen.append("plugin")

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            assert all(p.grad is None for p in peft.trainable_parameters())
            seen.append("observer")

    plugin = SimpleNamespace(step_ended=hookimpl(hookspecs.step_ended)(step_ended))
    peft.host.register(plugin, "plugin")
    train(peft, needles(8), None, config, observers=[observe])
    assert seen == ["plugin", "observer"]


def test_each_step_of_a_recipe_has_its_own_rate() -> None:
    rates: list[tuple[float, ...]] = []
    recipe = [
        LoraConfig(r=2, target_modules=["q_proj"]),
        PromptTuningConfig(num_virtual_tokens=2),
    ]
    peft = get_peft_model(language_model(), recipe)
    for parameter in peft.added_parameters()[0][1:]:
        parameter.requires_grad = False
    note = lambda e: rates.append(e.lrs) if isinstance(e, StepEnded) else None  # noqa: E731
    config = TrainConfig(batch_size=4, warmup=0.0, max_steps=2)
    train(peft, countings(8), None, config, observers=[note])
    assert rates == [pytest.approx((1e-3, 1e-2)), pytest.approx((5e-4, 5e-3))]


def test_a_step_that_trains_nothing_has_rate_zero() -> None:
    rates: list[tuple[float, ...]] = []
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    peft = get_peft_model(language_model(), [lora, lora])
    for parameter in peft.added_parameters()[0]:
        parameter.requires_grad = False
    note = lambda e: rates.append(e.lrs) if isinstance(e, StepEnded) else None  # noqa: E731
    train(peft, countings(4), None, TrainConfig(lr=0.5, max_steps=1), observers=[note])
    assert rates == [(0.0, 0.5)]


# ---------- training_ended ----------


def test_plugins_hear_of_the_end_when_the_best_weights_are_back() -> None:
    heard: list[tuple[TrainingEnded, float]] = []
    peft = adapted(model=language_model())
    held_out = countings(8, seed=1)

    def training_ended(event: TrainingEnded) -> None:
        heard.append((event, evaluate(peft, held_out, batch_size=4).loss))

    ear = SimpleNamespace(training_ended=hookimpl(hookspecs.training_ended)(training_ended))
    peft.host.register(ear, "ear")

    def spoil(event: Event) -> None:
        if isinstance(event, StepEnded) and event.step > 6:
            for parameter in peft.trainable_parameters():
                parameter.data[:] = 9

    config = TrainConfig(batch_size=4, epochs=2, lr=1e-2, eval_every=3)
    result = train(peft, countings(24), held_out, config, observers=[spoil])
    [(event, loss)] = heard
    assert result.best is not None
    assert result.best.step == 6
    assert loss == result.best.loss
    assert (event.outcome, event.step, event.model) == ("finished", 12, peft)


def test_plugins_hear_of_a_run_that_diverged() -> None:
    heard: list[str] = []
    peft = adapted()

    def training_ended(event: TrainingEnded) -> None:
        heard.append(event.outcome)

    ear = SimpleNamespace(training_ended=hookimpl(hookspecs.training_ended)(training_ended))
    peft.host.register(ear, "ear")

    def blow_up(_event: Event) -> None:
        peft.trainable_parameters()[0].data[:] = np.inf

    with pytest.raises(TrainingError):
        train(peft, needles(24), None, SHORT, observers=[at_step(2, blow_up)])
    assert heard == ["diverged"]


# ---------- a weight that shrinks ----------


def shrinking_host() -> Host:
    host = Host.installed()
    host.register(shrinking, "shrinking")
    return host


def ranks(peft: PeftModel) -> list[int]:
    return [m.rank for _, m in peft.named_modules() if isinstance(m, ShrinkingLinear)]


def test_a_rank_that_shrinks_is_saved_counted_inspected_loaded_and_merged(tmp_path: Path) -> None:
    host = shrinking_host()
    recipe = [
        ShrinkingConfig(target_modules=["q_proj"]),
        LoraConfig(r=2, target_modules=["v_proj"]),
    ]
    peft = get_peft_model(language_model(), recipe, host=host)
    before, _ = peft.get_nb_trainable_parameters()
    config = TrainConfig(batch_size=4, epochs=2, lr=1e-2, warmup=0.0)
    result = train_into(tmp_path, peft, countings(24), None, config)
    assert ranks(peft) == [4, 4]
    counted = peft.get_nb_trainable_parameters()
    assert counted[0] == before - 2 * 4 * (16 + 16)
    assert result.trainable_parameters == counted[0]
    assert count_recipe(peft.config, peft.recipe, host) == counted

    written = json.loads((tmp_path / "0-shrinking" / "adapter_config.json").read_text())
    assert sorted(written["ranks"].values()) == [4, 4]
    report = inspect_path(tmp_path, host)
    assert report.problems == []
    assert [part.problems for part in report.parts] == [[], []]

    loaded = PeftModel.from_pretrained(language_model(), tmp_path, host=host)
    assert loaded.recipe == peft.recipe
    assert ranks(loaded) == [4, 4]
    ids = np.array([[1, 2, 3, 4]])
    np.testing.assert_array_equal(loaded(ids).data, peft(ids).data)
    expected = peft(ids).data
    peft.merge_adapter()
    np.testing.assert_allclose(peft(ids).data, expected, rtol=1e-4, atol=1e-5)
    peft.unmerge_adapter()
    assert same(weights(peft.unload()), weights(language_model()))


def test_combining_and_other_layouts_get_the_sizes_as_trained(tmp_path: Path) -> None:
    configs: list[PeftConfig] = []

    def combine_adapters(config: PeftConfig, combination: Combination) -> Combined | None:
        configs.extend(source.config for source in combination.sources)
        return None

    def write_foreign(config: PeftConfig, request: ForeignRequest) -> ForeignStep | None:
        configs.append(config)
        return None

    host = shrinking_host()
    ear = SimpleNamespace(
        combine=hookimpl(peft_hookspecs.combine_adapters)(combine_adapters),
        write=hookimpl(peft_hookspecs.write_foreign)(write_foreign),
    )
    host.register(ear, "ear")
    recipe = ShrinkingConfig(target_modules=["q_proj"])
    peft = get_peft_model(language_model(), recipe, host=host)
    train(peft, countings(24), None, SHORT)
    with pytest.raises(PeftError, match="cannot be combined"):
        peft.add_weighted_adapter(["default"], [1.0], "half")
    with pytest.raises(ConfigError, match="no installed plugin writes shrinking"):
        peft.save_pretrained(tmp_path, layout="mlx-lm")
    assert configs == [*peft.recipe, *peft.recipe]
    shrunk = [config for config in configs if isinstance(config, ShrinkingConfig)]
    assert [sorted(config.ranks.values()) for config in shrunk] == [[4, 4], [4, 4]]


def test_best_weights_that_are_larger_than_the_last_come_back(tmp_path: Path) -> None:
    peft = get_peft_model(
        language_model(), ShrinkingConfig(target_modules=["q_proj"]), host=shrinking_host()
    )
    held_out = countings(8, seed=1)

    def spoil(event: Event) -> None:
        if isinstance(event, StepEnded) and event.step > 2:
            for parameter in peft.trainable_parameters():
                parameter.data[:] = 9

    config = TrainConfig(batch_size=4, epochs=1, lr=1e-2, eval_every=2)
    result = train_into(tmp_path, peft, countings(24), held_out, config, observers=[spoil])
    assert result.best is not None
    assert result.best.step == 2
    assert ranks(peft) == [6, 6]
    assert evaluate(peft, held_out, batch_size=4).loss == result.best.loss
    loaded = PeftModel.from_pretrained(language_model(), tmp_path, host=peft.host)
    assert ranks(loaded) == [6, 6]


def test_shrunk_moments_belong_to_the_kept_rows() -> None:
    peft = get_peft_model(
        language_model(), ShrinkingConfig(target_modules=["q_proj"]), host=shrinking_host()
    )
    checked: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            optimizer = event.optimizer
            for moments in optimizer.moments.values():
                shapes = [moment.shape for moment in moments]
                assert shapes == [p.shape for p in optimizer.parameters]
            checked.append(optimizer.parameters[0].shape[0])

    train(peft, countings(24), None, SHORT, observers=[observe])
    assert checked == [7, 6, 5, *[4] * 9]
