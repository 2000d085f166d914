import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import FAMILIES, GPT2, IDS, LLAMA, logits, shake, small
from tests.train.toys import classifier, countings, language_model, needles
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Dropout, Init, Linear, TransformerConfig
from tinygrad_peft.peft import (
    Host,
    PeftModel,
    config_from_dict,
    count_recipe,
    get_peft_model,
    inspect_path,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.train import (
    Encoded,
    EncodedData,
    Event,
    StepEnded,
    Stepper,
    TrainConfig,
    evaluate,
    make_batch,
    read_running_state,
    train,
    write_running_state,
)
from tinygrad_peft.train.output_folder import train_into
from tinygrad_peft_adalora import AdaLoraConfig, AdaLoraLinear, Budget, orthogonality
from tinygrad_peft_adalora.running_state import RunningState
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QuantizeConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GOLDEN = Path(__file__).parents[1] / "golden"
RUN = GOLDEN / "adalora-run"
ALL = AdaLoraConfig(init_r=4, target_r=2, target_modules="all-linear")
# Of a run of 8 steps: three allocations, the last of them after step 6.
SHORT = AdaLoraConfig(init_r=4, target_r=2, tinit=2, tfinal=2, deltaT=2, target_modules=["q_proj"])
EIGHT = TrainConfig(batch_size=4, max_steps=8, epochs=2, warmup=0.0)
SGD = TrainConfig(
    optimizer="sgd", lr=0.5, warmup=0, schedule="constant", weight_decay=0, max_grad_norm=None
)


def layers(model: PeftModel) -> list[AdaLoraLinear]:
    return [m for _, m in model.named_modules() if isinstance(m, AdaLoraLinear)]


def ranks(model: PeftModel) -> list[int]:
    return [layer.rank for layer in layers(model)]


def values(model: PeftModel) -> int:
    """Count the nonzero singular values of all layers."""
    return sum(int(np.count_nonzero(layer.lora_E.data)) for layer in layers(model))


def present(array: Array | None) -> Array:
    assert array is not None
    return array


def trained(config: AdaLoraConfig = SHORT, **settings: Any) -> PeftModel:  # noqa: ANN401
    peft = get_peft_model(language_model(), config)
    train(peft, countings(16), None, replace(EIGHT, **settings))
    return peft


# ---------- a run of PEFT's, made again ----------


def test_a_run_of_pefts_gives_the_same_losses_triplets_and_weights() -> None:
    with np.load(RUN / "run.npz") as stored:
        run = dict(stored)
    settings = json.loads((RUN / CONFIG).read_text())
    written = config_from_dict(AdaLoraConfig, AdaLoraConfig.file_format.repairs(settings))
    assert written.total_step is not None
    peft = get_peft_model(
        load_model(GOLDEN / "gpt2", dtype=np.float64), replace(written, rank_pattern=None)
    )
    for name, parameter in peft.record.stored_parameters(0).items():
        parameter.data = run[f"start.{name}"].copy()
    for _, module in peft.named_modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    sgd = replace(SGD, lr=0.05)
    stepper = Stepper(peft, sgd, total_steps=written.total_step)
    by_path = [layer for _, layer in sorted((r.seam.path, r.after) for r in peft.record.rewrites)]
    last = written.total_step - written.tfinal
    for step in range(1, last + 1):
        rows = [Encoded(tuple(ids), tuple(ids)) for ids in run[f"ids.{step}"].tolist()]
        event = stepper.step(make_batch(EncodedData(rows, pad_id=0)))
        assert event.loss == pytest.approx(float(run[f"loss.{step}"]), abs=1e-9)
        kept = [
            layer.pattern if step == last else tuple((layer.lora_E.data[:, 0] != 0).tolist())
            for layer in by_path
            if isinstance(layer, AdaLoraLinear)
        ]
        assert kept == [tuple(mask) for mask in run[f"kept.{step}"].tolist()]
    (config,) = peft.recipe
    assert config == written
    for name, parameter in peft.record.stored_parameters(0).items():
        path, _, own = name.removeprefix("base_model.model.").rpartition(".")
        expected, mask = run[f"end.{name}"], np.array(written.kept(path))
        expected = expected[:, mask] if own == "lora_B" else expected[mask]
        np.testing.assert_allclose(parameter.data, expected, rtol=1e-8, atol=1e-10)


# ---------- the layer ----------


def layer(**settings: Any) -> AdaLoraLinear:  # noqa: ANN401
    init = Init(3, np.float64)
    base = Linear(5, 4, init=init)
    return AdaLoraLinear(base, Budget(AdaLoraConfig(init_r=3, target_r=2, **settings)), "", init)


def test_a_layer_starts_as_its_base_and_is_its_formula() -> None:
    made, x = layer(lora_alpha=6), Init(0, np.float64).normal(7, 5, std=1)
    np.testing.assert_array_equal(made(Tensor(x)).data, made.base_layer(Tensor(x)).data)
    assert 0 < np.abs(made.lora_A.data).max() < 0.1
    made.lora_E.data = np.array([[1.0], [0], [-2]])
    a, b = made.lora_A.data, made.lora_B.data
    delta = 6 / (3 + 1e-5) * (np.outer(b[:, 0], a[0]) - 2 * np.outer(b[:, 2], a[2]))
    np.testing.assert_allclose(made.delta(), delta)
    base = made.base_layer(Tensor(x)).data
    np.testing.assert_allclose(made(Tensor(x)).data, base + x @ delta.T)
    merged = made.merge()
    assert merged is not None
    np.testing.assert_allclose(merged(Tensor(x)).data, made(Tensor(x)).data)


def test_without_a_start_of_its_own_the_update_is_not_zero() -> None:
    made = layer(init_lora_weights=False)
    assert all(np.abs(p.data).max() > 0.5 for p in made.triplets.values())


@pytest.mark.parametrize("alpha", [0, -2])
def test_an_alpha_that_is_not_above_zero_stands_for_the_rank_as_in_peft(alpha: float) -> None:
    assert layer(lora_alpha=alpha).scaling == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_penalty_is_its_formula_and_its_gradient_matches_differences(rank: int) -> None:
    p = Tensor(np.random.default_rng(0).normal(size=(rank, 5)), requires_grad=True)
    expected = np.linalg.norm(p.data @ p.data.T - np.eye(rank))
    assert orthogonality(p).item() == pytest.approx(expected, rel=1e-12)
    assert check_gradients(orthogonality, [p]) < 1e-6


def test_orthonormal_rows_have_no_penalty_and_no_gradient() -> None:
    p = Tensor(np.eye(2, 5), requires_grad=True)
    found = orthogonality(p)
    found.backward()
    assert found.item() == 0
    np.testing.assert_array_equal(present(p.grad), np.zeros((2, 5)))


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_it_merges_over_lora_and_over_a_4_bit_base(model: TransformerConfig) -> None:
    for below in (LoraConfig(r=2, target_modules="all-linear"), QuantizeConfig()):
        peft = get_peft_model(small(model), [below, ALL])
        shake(peft)
        expected = logits(peft)
        np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=2e-5)


def test_peft_has_no_weighted_sum_of_adaloras_and_neither_is_there_one_here() -> None:
    peft = get_peft_model(small(), ALL)
    peft.add_adapter("other", ALL)
    with pytest.raises(PeftError, match="adalora"):
        peft.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")


# ---------- the budget ----------


def triplets_over_time(peft: PeftModel, config: TrainConfig = EIGHT) -> list[int]:
    found: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            found.append(values(peft))

    train(peft, countings(16), None, config, observers=[observe])
    return found


def test_the_budget_falls_as_a_cubic_and_pruned_triplets_may_come_back_until_the_end() -> None:
    peft = get_peft_model(language_model(), SHORT)
    # b(4) = 4 + 4 (1 - 2/4)³, and b(6) = 4
    assert triplets_over_time(peft) == [8, 8, 8, 4, 8, 4, 4, 4]
    assert sum(ranks(peft)) == 4


def test_a_budget_for_every_step_falls_in_every_step() -> None:
    config = replace(SHORT, init_r=8, target_r=1, tinit=1, tfinal=1, deltaT=1)
    found = triplets_over_time(get_peft_model(language_model(), config))
    assert found == [int(2 + 14 * (1 - max(t - 1, 0) / 6) ** 3) for t in range(1, 8)] + [2]


def test_the_triplets_of_one_budget_go_to_the_layers_that_need_them() -> None:
    config = replace(SHORT, init_r=6, target_r=2, target_modules="all-linear")
    peft = trained(config)
    found = ranks(peft)
    assert sum(found) == 2 * len(found)
    assert min(found) < 2 < max(found)


def test_two_steps_of_a_recipe_have_budgets_of_their_own() -> None:
    recipe = [SHORT, replace(SHORT, init_r=6, target_r=3, target_modules=["v_proj"])]
    peft = get_peft_model(language_model(), recipe)
    train(peft, countings(16), None, EIGHT)
    budgets = {id(layer.budget) for layer in layers(peft)}
    assert len(budgets) == 2
    assert [sum(config.rank(path) for path in places(peft, i)) for i, config in steps(peft)] == [
        4,
        6,
    ]


def places(peft: PeftModel, step: int) -> list[str]:
    return [r.seam.path for r in peft.record.rewrites if r.step == step]


def steps(peft: PeftModel) -> list[tuple[int, AdaLoraConfig]]:
    return [(i, c) for i, c in enumerate(peft.recipe) if isinstance(c, AdaLoraConfig)]


def test_a_layer_that_is_frozen_has_no_part_in_the_budget() -> None:
    peft = get_peft_model(language_model(), SHORT)
    layers(peft)[1].lora_B.requires_grad = False
    train(peft, countings(16), None, EIGHT)
    assert ranks(peft) == [2, 4]


def test_an_adapter_that_is_not_trained_is_not_pruned() -> None:
    peft = get_peft_model(language_model(), LoraConfig(target_modules=["q_proj"]))
    peft.add_adapter("other", SHORT)
    peft.set_adapter("default")
    train(peft, countings(16), None, EIGHT)
    peft.set_adapter("other")
    assert ranks(peft) == [4, 4]
    assert layers(peft)[0].budget.step == 0


def test_equal_ranks_at_start_and_end_prune_nothing() -> None:
    peft = trained(replace(SHORT, target_r=4))
    assert ranks(peft) == [4, 4]
    (config,) = peft.recipe
    assert config == replace(SHORT, target_r=4, total_step=8)


def test_the_optimiser_goes_on_with_the_moments_of_what_is_left() -> None:
    shapes: list[tuple[int, ...]] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            optimizer = event.optimizer
            for moments in optimizer.moments.values():
                assert [m.shape for m in moments] == [p.shape for p in optimizer.parameters]
            shapes.append(optimizer.parameters[1].shape)

    peft = get_peft_model(language_model(), replace(SHORT, init_r=6))
    train(peft, countings(16), None, EIGHT, observers=[observe])
    assert shapes[4] == (6, 1)
    assert shapes[5] == shapes[7] == (ranks(peft)[0], 1)


def test_a_layer_may_lose_all_its_triplets_and_train_on(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), replace(SHORT, target_r=1, orth_reg_weight=0.1))
    for parameter in layers(peft)[0].triplets.values():
        parameter.data = np.zeros_like(parameter.data)  # which gets no gradients, nor importance
    train_into(tmp_path, peft, countings(16), None, EIGHT)
    assert ranks(peft) == [0, 2]
    loaded = PeftModel.from_pretrained(language_model(), tmp_path)
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(ids).data, peft(ids).data)
    expected = peft(ids).data
    np.testing.assert_allclose(peft.merge_and_unload()(ids).data, expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_leaves_the_budget_no_step_is_refused() -> None:
    peft = get_peft_model(language_model(), replace(SHORT, tinit=6))
    with pytest.raises(ConfigError, match="more than tinit=6 and tfinal=2 steps, got 8"):
        train(peft, countings(16), None, EIGHT)


def test_a_run_of_one_step_prunes_after_it() -> None:
    peft = get_peft_model(language_model(), replace(SHORT, tinit=0, tfinal=0))
    train(peft, countings(16), None, replace(EIGHT, max_steps=1))
    assert sum(ranks(peft)) == 4


def test_the_penalty_is_reported_by_name_and_makes_the_vectors_orthogonal() -> None:
    far, near = (
        trained(replace(SHORT, tfinal=0, orth_reg_weight=w), lr=0.03, epochs=20, max_steps=80)
        for w in (0.0, 0.5)
    )
    distances = [
        np.mean([layer.penalty().item() for layer in layers(peft)]) for peft in (far, near)
    ]
    assert distances[1] < 0.3 * distances[0]
    losses: list[dict[str, float]] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded):
            losses.append(dict(event.extra_losses))

    for weight in (0.0, 0.5):
        peft = get_peft_model(language_model(), replace(SHORT, orth_reg_weight=weight))
        train(peft, countings(16), None, replace(EIGHT, max_steps=None), observers=[observe])
    assert losses[0] == {}
    assert losses[-1].keys() == {"adalora"}


def test_a_classifier_learns_with_half_of_the_triplets() -> None:
    peft = get_peft_model(
        classifier(),
        AdaLoraConfig(init_r=4, target_r=2, tinit=10, tfinal=20, target_modules="all-linear"),
    )
    config = TrainConfig(batch_size=16, epochs=8, lr=0.03)
    result = train(peft, needles(256), needles(64, seed=1), config)
    assert result.evaluations[-1].accuracy is not None
    assert result.evaluations[-1].accuracy > 0.9
    assert sum(ranks(peft)) == 2 * len(ranks(peft))


# ---------- files ----------


def test_pruned_ranks_are_saved_counted_inspected_and_loaded(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), replace(SHORT, init_r=6, target_r=3))
    train_into(tmp_path, peft, countings(16), None, EIGHT)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert sum(map(sum, written["rank_pattern"].values())) == 6
    assert {len(kept) for kept in written["rank_pattern"].values()} == {6}
    assert written["total_step"] == 8
    shapes = {name: array.shape for name, array in load_file(tmp_path / WEIGHTS).items()}
    for path, kept in written["rank_pattern"].items():
        prefix, rank = f"base_model.model.{path.removesuffix('.lora_E')}", sum(kept)
        assert shapes[f"{prefix}.lora_A"] == (rank, 16)
        assert shapes[f"{prefix}.lora_E"] == (rank, 1)
        assert shapes[f"{prefix}.lora_B"] == (16, rank)
    report = inspect_path(tmp_path, Host.installed())
    assert report.sound, report.problems
    assert report.facts["ranks"] == sorted(set(ranks(peft)))
    loaded = PeftModel.from_pretrained(language_model(), tmp_path)  # without a warning
    assert loaded.recipe == peft.recipe
    ids = np.array([[1, 2, 3, 4]])
    np.testing.assert_array_equal(loaded(ids).data, peft(ids).data)
    assert loaded.get_nb_trainable_parameters()[1] == peft.get_nb_trainable_parameters()[1]
    counted = count_recipe(language_model().config, peft.recipe[0], Host.installed())
    assert counted == peft.get_nb_trainable_parameters()


def test_an_adapter_that_was_pruned_is_trained_on_without_losing_more(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(language_model(), tmp_path, is_trainable=True)
    before = ranks(loaded)
    train(loaded, countings(16), None, EIGHT)
    assert ranks(loaded) == before
    pruned = replace(steps(loaded)[0][1], target_r=1)
    again = get_peft_model(language_model(), pruned)
    assert ranks(again) == before
    train(again, countings(16), None, EIGHT)
    assert sum(ranks(again)) == 2
    (after,) = again.recipe
    assert isinstance(after, AdaLoraConfig)
    for path in places(again, 0):
        pairs = zip(pruned.kept(path), after.kept(path), strict=True)
        assert (False, True) not in pairs


def test_weights_of_before_the_pruning_come_back_with_their_ranks(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), SHORT)

    def spoil(event: Event) -> None:
        if isinstance(event, StepEnded) and event.step > 5:
            for layer in layers(peft):
                layer.lora_E.data = layer.lora_E.data + 50

    train_into(
        tmp_path,
        peft,
        countings(16),
        countings(8, seed=1),
        replace(EIGHT, eval_every=5, lr=1e-3),
        observers=[spoil],
    )
    assert ranks(peft) == [4, 4]
    (config,) = peft.recipe
    assert config == replace(SHORT, total_step=8)
    loaded = PeftModel.from_pretrained(language_model(), tmp_path)
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(ids).data, peft(ids).data)


def test_what_is_saved_between_two_allocations_is_what_is_trained(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), replace(SHORT, deltaT=3, total_step=8))
    train_into(tmp_path, peft, countings(16), None, replace(EIGHT, max_steps=5))
    assert values(peft) == 8
    assert layers(peft)[0].budget.step == 5
    loaded = PeftModel.from_pretrained(language_model(), tmp_path)
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(ids).data, peft(ids).data)


def test_an_evaluation_tells_the_penalty_apart_from_the_loss() -> None:
    peft, held_out = get_peft_model(language_model(), SHORT), countings(8)
    result = train(peft, countings(16), held_out, EIGHT)
    found = result.evaluations[-1]
    assert found.loss == evaluate(peft, held_out, batch_size=4).loss
    assert found.extra_losses["adalora"] > 0.1


def test_a_run_in_two_parts_ends_as_one_run(tmp_path: Path) -> None:
    config = replace(SHORT, total_step=8)
    data = [make_batch(countings(4, seed=i)) for i in range(8)]

    def go_on(peft: PeftModel, part: Sequence[Any]) -> None:
        stepper = Stepper(peft, SGD, total_steps=8)
        for batch in part:
            stepper.step(batch)

    whole = get_peft_model(language_model(), config)
    go_on(whole, data)
    first = get_peft_model(language_model(), config)
    go_on(first, data[:3])
    first.save_pretrained(tmp_path)
    write_running_state(first, tmp_path)
    second = PeftModel.from_pretrained(language_model(), tmp_path, is_trainable=True)
    read_running_state(second, tmp_path)
    go_on(second, data[3:])
    assert second.recipe == whole.recipe
    for one, other in zip(layers(second), layers(whole), strict=True):
        assert one.pattern == other.pattern
        np.testing.assert_array_equal(one.delta(), other.delta())


def test_a_running_state_of_after_the_pruning_fits_what_was_saved(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), SHORT)
    stepper = Stepper(peft, SGD, total_steps=8)
    for seed in range(8):
        stepper.step(make_batch(countings(4, seed=seed)))
    assert any(layer.rank < SHORT.init_r for layer in layers(peft))
    peft.save_pretrained(tmp_path)
    write_running_state(peft, tmp_path)
    other = PeftModel.from_pretrained(language_model(), tmp_path, is_trainable=True)
    read_running_state(other, tmp_path)
    assert [layer.budget.step for layer in layers(other)] == [8] * len(layers(other))


def test_a_running_state_of_other_ranks_is_refused(tmp_path: Path) -> None:
    peft = get_peft_model(language_model(), SHORT)
    write_running_state(peft, tmp_path)
    other = get_peft_model(language_model(), replace(SHORT, init_r=5))
    with pytest.raises(CheckpointError, match="the state of AdaLoRA does not fit"):
        read_running_state(other, tmp_path)


@pytest.mark.parametrize(
    ("ending", "wrong", "message"),
    [
        ("budget", np.array([8, -1, 3]), "budget: expected finite numbers of at least 0"),
        ("budget", np.array([8, np.nan, 3]), "budget: expected finite numbers of at least 0"),
        ("budget", np.array([8, 1, 2.5]), "budget: expected whole numbers, got float64"),
        ("lora_E.sensitivity", np.inf, "sensitivity: expected finite numbers of at least 0"),
        ("lora_A.uncertainty", -1.0, "uncertainty: expected finite numbers of at least 0"),
    ],
)
def test_a_running_state_out_of_range_is_refused(
    ending: str, wrong: float | Array, message: str
) -> None:
    state = RunningState(get_peft_model(language_model(), SHORT).base_model)
    arrays = state.state_dict()
    name = next(name for name in arrays if name.endswith(ending))
    with pytest.raises(CheckpointError, match=message):
        state.load_state_dict(arrays | {name: np.zeros_like(arrays[name]) + wrong})


def test_settings_that_peft_writes_and_does_not_use_are_passed_over(tmp_path: Path) -> None:
    own = replace(ALL, target_modules=["q_proj"])
    get_peft_model(small(), own).save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    unused = {
        "r": 5,
        "use_rslora": True,
        "alpha_pattern": {"q": 3},
        "lora_bias": True,
        "init_lora_weights": "gaussian",
        "fan_in_fan_out": True,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | unused | {"target_r": 9}))
    (config,) = PeftModel.from_pretrained(small(), tmp_path).recipe
    assert config == replace(own, target_r=4)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora"):
        PeftModel.from_pretrained(small(), tmp_path)


def test_inspect_says_what_names_and_shapes_tell(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    (tmp_path / "recipe.json").unlink()  # as PEFT leaves it
    assert inspect_path(tmp_path, Host.installed()).sound
    stored = load_file(tmp_path / WEIGHTS)
    name = next(n for n, array in stored.items() if n.endswith("lora_A") and array.size)
    short = name.removeprefix("base_model.model.")
    path, rank = short.rpartition(".")[0], len(stored[name])
    save_file({**stored, name: stored[name][:0].copy()}, tmp_path / WEIGHTS)
    problems = inspect_path(tmp_path, Host.installed()).problems
    assert list(problems) == [f"{short} is (0, 16), and the settings give it the rank {rank}"]
    del stored[name]
    save_file(stored, tmp_path / WEIGHTS)
    problems = inspect_path(tmp_path, Host.installed()).problems
    assert list(problems) == [f"{path}.lora_{own} is there without {short}" for own in ("B", "E")]


# ---------- settings and counts ----------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"init_r": 0, "target_r": 1}, "init_r=0: expected at least 1"),
        ({"target_r": 13}, "target_r=13: expected 1 to init_r=12"),
        ({"target_r": 0}, "target_r=0: expected 1 to init_r=12"),
        ({"tinit": -1}, "tinit=-1: expected at least 0"),
        ({"tfinal": -1}, "tfinal=-1: expected at least 0"),
        ({"deltaT": 0}, "deltaT=0: expected at least 1"),
        ({"beta1": 1.0}, r"beta1=1\.0: expected a number between 0 and 1"),
        ({"beta2": 0.0}, r"beta2=0\.0: expected a number between 0 and 1"),
        ({"orth_reg_weight": -1}, r"orth_reg_weight=-1\.0: expected at least 0"),
        ({"lora_dropout": 1}, r"lora_dropout=1\.0 must be at least 0 and below 1"),
        ({"total_step": 0}, "expected more than tinit=0 and tfinal=0 steps, got 0"),
        (
            {"total_step": 9, "tinit": 4, "tfinal": 5},
            "the budget falls in no step: expected more than tinit=4 and tfinal=5 steps, got 9",
        ),
        (
            {"rank_pattern": {"q.lora_E": [True]}},
            r"rank_pattern of q\.lora_E: expected init_r=12 entries, got 1",
        ),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": 1},
            "layers_to_transform needs target_modules as a list",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        AdaLoraConfig(**settings)


def test_a_pattern_for_what_is_not_a_target_is_refused() -> None:
    config = replace(ALL, target_modules=["q_proj"], rank_pattern={"h.lora_E": [True] * 4})
    with pytest.raises(PeftError, match=r"step 0: rank_pattern names h\.lora_E, which is not a"):
        get_peft_model(small(), config)


def test_biases_that_are_trained_need_a_recipe_of_one_step() -> None:
    with pytest.raises(PeftError, match="bias other than 'none' needs a recipe of one step"):
        get_peft_model(small(), [AdaLoraConfig(bias="all"), LoraConfig()])


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_count_is_the_formula(bias: Any) -> None:  # noqa: ANN401
    pattern = {"transformer.h.0.attn.c_attn.lora_E": [True, False, True, False]}
    config = AdaLoraConfig(init_r=4, target_r=2, bias=bias, rank_pattern=pattern)
    biases = {"none": 0, "lora_only": 2 * 48, "all": 2 * (48 + 16 + 32 + 16 + 2 * 16) + 16}
    added = (2 + 4) * (16 + 48 + 1)
    expected = added + biases[bias], small(GPT2).count() + added
    assert get_peft_model(small(GPT2), config).get_nb_trainable_parameters() == expected
    assert count_recipe(GPT2, config, Host.installed()) == expected


def test_rows_of_a_batch_go_through_adapters_of_their_own() -> None:
    peft = get_peft_model(small(LLAMA), ALL)
    shake(peft)
    peft.add_adapter("other", replace(ALL, init_r=3))
    peft.set_adapter("other")
    shake(peft, seed=1)
    alone = []
    for name in ("default", "other"):
        peft.set_adapter(name)
        alone.append(logits(peft))
    mixed = peft(IDS, adapter_names=["other", "default"]).data
    np.testing.assert_allclose(mixed, [alone[1][0], alone[0][1]], atol=1e-6)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_pattern_names_its_place_with_the_familys_prefix_and_without(prefix: str) -> None:
    key = f"{prefix}layers.0.self_attn.q_proj.lora_E"
    config = AdaLoraConfig(init_r=2, target_r=2, rank_pattern={key: [True, False]})
    assert config.rank("model.layers.0.self_attn.q_proj") == 1
    assert config.rank("layers.0.self_attn.q_proj") == 1
    assert config.rank("model.layers.1.self_attn.q_proj") == 2
    get_peft_model(small(LLAMA), config)
