import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import FAMILIES, GPT2, IDS, LLAMA, logits, shake, small
from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError, ShapeError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Init, Linear, TransformerConfig
from tinygrad_peft.peft import Host, PeftModel, count_recipe, get_peft_model, inspect_path
from tinygrad_peft.tensor import Tensor, apply_fused
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QuantizeConfig
from tinygrad_peft_vera import (
    DrawnProjection,
    StoredProjection,
    VeraConfig,
    VeraLinear,
    drawn_uniform,
    vera_update,
)

WEIGHTS = "adapter_model.safetensors"
ALL = VeraConfig(r=4, target_modules="all-linear")


def adapted(config: VeraConfig, model: TransformerConfig = LLAMA) -> PeftModel:
    peft = get_peft_model(small(model), config)
    shake(peft)
    return peft


def layers(peft: PeftModel) -> list[VeraLinear]:
    return [m for _, m in peft.named_modules() if isinstance(m, VeraLinear)]


def matrices(peft: PeftModel, layer: int = 0) -> tuple[Array, Array]:
    return layers(peft)[layer].projection.matrices


def present(array: Array | None) -> Array:
    assert array is not None
    return array


# ---------- the random matrices ----------

# PEFT's torch.empty(2, 3).uniform_, then (3, 2), as the bits of float32, by key.
DRAWN = {
    0: (
        [3157096738, 1061303964, 3214212273, 3213178909, 3205198038, 1052912299],
        [3171717232, 1068484892, 3189597681, 1055566139, 3204841655, 3199095023],
    ),
    -1: (
        [1068680772, 1045333622, 1045087187, 3215136985, 1068662694, 1059881924],
        [1059090761, 3208998227, 1050945901, 1050855938, 3213354269, 3215408128],
    ),
}


@pytest.mark.parametrize("key", [*DRAWN, 2**32 - 1, 2**40])
def test_matrices_match_peft_bit_for_bit(key: int) -> None:
    config = VeraConfig(r=2, projection_prng_key=key)
    drawn = DrawnProjection(config, 3, 3, Init(0)).matrices
    expected = DRAWN[{2**32 - 1: -1, 2**40: 0}.get(key, key)]
    for matrix, bits in zip(drawn, expected, strict=True):
        assert matrix.view(np.uint32).ravel().tolist() == bits


def test_the_matrices_are_kaiming_uniform() -> None:
    drawn = drawn_uniform(np.random.RandomState(0), (200, 150))
    bound = np.sqrt(6 / 150)
    assert drawn.dtype == np.float32
    assert -bound <= drawn.min() < -0.999 * bound < 0.999 * bound < drawn.max() <= bound
    assert abs(drawn.mean()) < 0.01 * bound
    assert drawn.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)


def test_in_float64_they_have_the_same_values() -> None:
    config = VeraConfig(r=2)
    for narrow, wide in zip(
        DrawnProjection(config, 3, 5, Init(0)).matrices,
        DrawnProjection(config, 3, 5, Init(0, np.float64)).matrices,
        strict=True,
    ):
        assert wide.dtype == np.float64
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("save", [True, False])
def test_all_targets_share_views_of_the_matrices(save: bool) -> None:
    peft = adapted(VeraConfig(r=4, target_modules="all-linear", save_projection=save))
    a, b = matrices(peft)
    assert (a.shape, b.shape) == ((4, 24), (24, 4))  # the largest in_features and out_features
    assert len(layers(peft)) == 3 * 7
    for layer in layers(peft):
        assert layer.projection is layers(peft)[0].projection
        own_a, own_b = layer.matrices
        assert (own_a.shape[1], own_b.shape[0]) == (layer.in_features, layer.out_features)
        assert np.shares_memory(own_a, a)
        assert np.shares_memory(own_b, b)


def test_each_step_and_adapter_has_its_own_matrices() -> None:
    keys = [VeraConfig(r=2 + key, projection_prng_key=key) for key in range(3)]
    peft = get_peft_model(small(), keys[:2])
    peft.add_adapter("other", keys[2])
    shapes = {r.added["projection.vera_A"].shape for r in peft.record.rewrites if len(r.added) > 2}
    assert shapes == {(2, 16), (3, 16)}
    peft.set_adapter("other")
    assert matrices(peft)[0].shape == (4, 16)
    peft.delete_adapter("default")
    assert matrices(peft)[0].shape == (4, 16)


def test_matrices_are_frozen_and_copies_are_independent() -> None:
    peft = adapted(ALL)
    names = {n.rpartition(".")[2] for n, p in peft.named_parameters() if p.requires_grad}
    assert names == {"vera_lambda_b", "vera_lambda_d"}
    twin = copy.deepcopy(peft)
    assert layers(twin)[0].projection is layers(twin)[5].projection
    assert not np.shares_memory(matrices(twin)[0], matrices(peft)[0])


# ---------- the op ----------


@dataclass
class Case:
    """The op's inputs, the trained ones among them, and its formula written another way."""

    dropped: bool
    trained: tuple[bool, bool, bool] = (True, True, True)
    shape: tuple[int, ...] = (2, 3)
    rate: ClassVar[float] = 0.4

    def inputs(self) -> list[Tensor]:
        rng = np.random.default_rng(0)
        shapes = [(*self.shape, 5), (2,), (4,)]
        return [
            Tensor(rng.normal(size=shape), requires_grad=needed)
            for shape, needed in zip(shapes, self.trained, strict=True)
        ]

    @property
    def constants(self) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        wide = rng.normal(size=(2, 7))
        return {"a": wide[:, :5], "b": rng.normal(size=(4, 2)), "keep": self.keep}

    @property
    def keep(self) -> BoolArray | None:
        kept: BoolArray = np.random.default_rng(2).random((*self.shape, 5)) >= self.rate
        return kept if self.dropped else None

    def op(self, *inputs: Tensor) -> Tensor:
        return apply_fused(vera_update, *inputs, **self.constants, rate=self.rate)

    def formula(self, x: Array, lambda_d: Array, lambda_b: Array) -> Array:
        """Compute the update with ΔW built as a matrix."""
        dropped = x if self.keep is None else x * self.keep / (1 - self.rate)
        a, b = self.constants["a"], self.constants["b"]
        found: Array = dropped @ (np.diag(lambda_b) @ b @ np.diag(lambda_d) @ a).T
        return found


CASES = {
    "all": Case(dropped=True),
    "no dropout": Case(dropped=False),
    "first layer": Case(dropped=True, trained=(False, True, True)),
    "only x": Case(dropped=True, trained=(True, False, False)),
    "only λ_d": Case(dropped=False, trained=(False, True, False)),
    "only λ_b": Case(dropped=False, trained=(False, False, True)),
    "one vector": Case(dropped=True, shape=()),
    "empty": Case(dropped=False, shape=(0, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_op_is_its_formula_and_its_gradients_are_its_differences(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs()
    expected = case.formula(*(t.data for t in inputs))
    np.testing.assert_allclose(case.op(*inputs).data, expected, rtol=1e-12, atol=1e-12)
    assert check_gradients(case.op, inputs) < 1e-6


def test_gradients_match_the_paper() -> None:
    case = CASES["no dropout"]
    x, lambda_d, lambda_b = case.inputs()
    a, b = case.constants["a"], case.constants["b"]
    g = np.random.default_rng(3).normal(size=(2, 3, 4))
    case.op(x, lambda_d, lambda_b).backward(g)
    low, back = x.data @ a.T, g * lambda_b.data @ b
    np.testing.assert_allclose(present(lambda_d.grad), (back * low).sum((0, 1)))
    np.testing.assert_allclose(
        present(lambda_b.grad), (g * (low * lambda_d.data @ b.T)).sum((0, 1))
    )
    np.testing.assert_allclose(present(x.grad), back * lambda_d.data @ a)


def test_an_input_of_another_width_is_refused() -> None:
    x, lambda_d, lambda_b = (t.data for t in CASES["no dropout"].inputs())
    with pytest.raises(ShapeError, match=r"x \(2, 3, 4\) for a projection \(2, 5\)"):
        vera_update((True,) * 3, x[..., :4], lambda_d, lambda_b, **CASES["no dropout"].constants)


# ---------- the layer ----------


def test_a_layer_starts_as_its_base_and_follows_the_formula() -> None:
    init = Init(3, np.float64)
    base = Linear(5, 4, init=init)
    config = VeraConfig(r=2, d_initial=0.3)
    made = VeraLinear(base, config, DrawnProjection(config, 9, 6, init), init)
    x = init.normal(3, 5, std=1)
    np.testing.assert_array_equal(made(Tensor(x)).data, base(Tensor(x)).data)
    np.testing.assert_array_equal(made.vera_lambda_d.data, [0.3, 0.3])
    made.vera_lambda_b.data = init.normal(4, std=1)
    a, b = made.projection.matrices
    delta = made.vera_lambda_b.data[:, None] * (0.3 * b[:4] @ a[:, :5])
    np.testing.assert_allclose(made.delta(), delta)
    np.testing.assert_allclose(made(Tensor(x)).data, base(Tensor(x)).data + x @ delta.T)
    merged = made.merge()
    assert merged is not None
    np.testing.assert_allclose(merged(Tensor(x)).data, made(Tensor(x)).data)


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_it_merges_over_lora_and_over_a_4_bit_base(model: TransformerConfig) -> None:
    vera = VeraConfig(r=4, target_modules="all-linear")
    for below in (LoraConfig(r=2, target_modules="all-linear"), QuantizeConfig()):
        peft = get_peft_model(small(model), [below, vera])
        shake(peft)
        expected = logits(peft)
        np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=2e-5)


def test_rows_may_have_different_adapters() -> None:
    peft = adapted(ALL)
    peft.add_adapter("other", VeraConfig(r=3, projection_prng_key=1, save_projection=False))
    peft.set_adapter("other")
    shake(peft, seed=1)
    alone = []
    for name in ("default", "other"):
        peft.set_adapter(name)
        alone.append(logits(peft))
    mixed = peft(IDS, adapter_names=["other", "default"]).data
    np.testing.assert_allclose(mixed, [alone[1][0], alone[0][1]], atol=1e-6)


def test_veras_cannot_be_combined() -> None:
    peft = adapted(ALL)
    peft.add_adapter("other", ALL)
    with pytest.raises(PeftError, match="vera"):
        peft.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")


# ---------- settings and counts ----------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"r": 0}, "the rank r=0 must be at least 1"),
        ({"vera_dropout": 1.0}, r"vera_dropout=1\.0 must be at least 0 and below 1"),
        ({"d_initial": 0.0}, r"d_initial=0.0 must be a number other than 0"),
        ({"d_initial": float("inf")}, "d_initial: expected a finite number, got inf"),
        ({"projection_prng_key": 2**64}, "must be an integer from -2⁶³ to below 2⁶⁴"),
        ({"projection_prng_key": None}, "projection_prng_key: expected int, got None"),
        ({"projection_prng_key": 1.5}, r"projection_prng_key: expected int, got 1.5"),
        ({"bias": "lora_only"}, "bias: expected one of none, all, vera_only, got 'lora_only'"),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": 1},
            "layers_to_transform needs target_modules as a list",
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        VeraConfig(**settings)


def test_a_key_may_be_an_integer_of_numpys(tmp_path: Path) -> None:
    key: Any = np.int64(3)
    adapted(VeraConfig(r=2, projection_prng_key=key)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path)
    assert loaded.recipe == (VeraConfig(r=2, projection_prng_key=3),)


def test_biases_that_are_trained_need_a_recipe_of_one_step() -> None:
    with pytest.raises(PeftError, match="bias other than 'none' needs a recipe of one step"):
        get_peft_model(small(), [VeraConfig(bias="all"), LoraConfig()])


@pytest.mark.parametrize("bias", ["none", "all", "vera_only"])
@pytest.mark.parametrize("save", [True, False])
def test_the_count_is_the_formula(bias: Any, save: bool) -> None:  # noqa: ANN401
    config = VeraConfig(r=4, bias=bias, save_projection=save)
    biases = {"none": 0, "vera_only": 2 * 48, "all": 2 * (48 + 16 + 32 + 16 + 2 * 16) + 16}
    vectors = 2 * (48 + 4)
    added = vectors + (4 * (16 + 48) if save else 0)
    expected = vectors + biases[bias], small(GPT2).count() + added
    assert get_peft_model(small(GPT2), config).get_nb_trainable_parameters() == expected
    assert count_recipe(GPT2, config, Host.installed()) == expected


# ---------- files ----------


def test_saved_matrices_are_in_the_file_once(tmp_path: Path) -> None:
    for save in (True, False):
        config = VeraConfig(r=4, save_projection=save, layers_to_transform=0)
        adapted(config).save_pretrained(tmp_path / str(save))
    place = "base_model.model.model.layers.0.self_attn"
    vectors = {f"{place}.{p}_proj.vera_lambda_{v}" for p in "qv" for v in "bd"}
    shared = {"base_model.vera_A": (4, 16), "base_model.vera_B": (16, 4)}
    stored = load_file(tmp_path / "True" / WEIGHTS)
    assert stored.keys() == vectors | shared.keys()
    assert {name: stored[name].shape for name in shared} == shared
    assert load_file(tmp_path / "False" / WEIGHTS).keys() == vectors


def test_matrices_that_are_not_saved_are_drawn_again(tmp_path: Path) -> None:
    config = VeraConfig(r=4, save_projection=False, projection_prng_key=5)
    peft = adapted(config)
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path)
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_saved_matrices_are_used_with_any_key(tmp_path: Path) -> None:
    peft = adapted(VeraConfig(r=4))
    peft.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projection_prng_key": 99}))
    loaded = PeftModel.from_pretrained(small(), tmp_path)
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    assert isinstance(layers(loaded)[0].projection, StoredProjection)


def test_matrices_that_contradict_the_settings_are_refused(tmp_path: Path) -> None:
    adapted(VeraConfig(r=4)).save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    save_file({n: t for n, t in stored.items() if n != "base_model.vera_A"}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing: base_model\.vera_A \(4, 16\)"):
        PeftModel.from_pretrained(small(), tmp_path)
    save_file(stored, tmp_path / WEIGHTS)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"save_projection": False}))
    with pytest.raises(CheckpointError, match=r"unexpected: base_model\.vera_A \(4, 16\)"):
        PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.parametrize("save", [True, False])
def test_a_rank_beyond_memory_is_refused_by_its_size(save: bool, tmp_path: Path) -> None:
    adapted(VeraConfig(r=4, save_projection=save)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**15}))
    with pytest.raises(ConfigError, match=r"the rank r=10{15} must be at most 100,000"):
        PeftModel.from_pretrained(small(), tmp_path)


def test_inspect_reports_contents_and_problems_of_a_folder(tmp_path: Path) -> None:
    adapted(VeraConfig(r=4, projection_prng_key=3)).save_pretrained(tmp_path)
    report = inspect_path(tmp_path, Host.installed())
    assert report.sound, report.problems
    assert report.facts["ranks"] == [4]
    (tmp_path / "recipe.json").unlink()  # as PEFT leaves it
    assert inspect_path(tmp_path, Host.installed()).sound
    stored = load_file(tmp_path / WEIGHTS)
    del stored["base_model.vera_B"]
    save_file(stored, tmp_path / WEIGHTS)
    report = inspect_path(tmp_path, Host.installed())
    assert list(report.problems) == ["missing: base_model.vera_B (save_projection=True)"]


def test_inspect_checks_names_and_shapes() -> None:
    path = "layers.0.q_proj.vera_lambda"
    good = {
        "base_model.vera_A": (2, 8),
        "base_model.vera_B": (6, 2),
        f"{path}_b": (6,),
        f"{path}_d": (2,),
    }
    problems = VeraConfig(r=2).contradictions
    assert not problems({**good, "score.weight": (3, 8)})
    assert problems({**good, f"{path}_b": (7,)}) == [
        f"{path}_b: expected at most the rows of base_model.vera_B, got shape (7,)"
    ]
    assert problems({**good, f"{path}_d": (3,), "base_model.vera_A": (3, 8)}) == [
        "base_model.vera_A: expected shape (2, 8) (r=2), got (3, 8)",
        f"{path}_d: expected shape (2,) (r=2), got (3,)",
    ]
    without = {name: shape for name, shape in good.items() if name != f"{path}_d"}
    assert problems(without) == [f"{path}_b: {path}_d is missing"]
    odd = problems({**good, "base_model.vera_B": (), f"{path}_d": ()})
    assert odd[0] == "base_model.vera_B: expected shape (1, 2) (r=2), got ()"
    drawn = VeraConfig(r=2, save_projection=False).contradictions
    assert drawn(good)[0] == "unexpected: base_model.vera_A (save_projection=False)"
