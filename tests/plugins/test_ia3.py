import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinygrad_peft_ia3.plugin
from tests.peft.small import BERT_CLASSIFIER, FAMILIES, LLAMA, Snapshot, logits, shake, small
from tests.plugins.several_adapters import merged_weights, several
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError, TargetError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import Affine, Init, Linear, Module, Parameter, RMSNorm
from tinygrad_peft.peft import (
    CombinationType,
    Draft,
    Host,
    PeftConfig,
    PeftModel,
    Site,
    count_recipe,
    get_peft_model,
    hookspecs,
    inspect_path,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_ia3 import IA3Config, IA3Linear
from tinygrad_peft_lora import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BOTH_SIDES = pytest.mark.parametrize("on_input", [False, True], ids=["output", "input"])


def host() -> Host:
    made = Host()
    made.register(tinygrad_peft_ia3.plugin, "ia3")
    return made


def adapted(config: PeftConfig, family: str = "llama") -> PeftModel:
    peft = get_peft_model(small(FAMILIES[family], np.float64), config, host=host())
    shake(peft)
    return peft


def layer(*, on_input: bool, bias: bool = True, base: Affine | None = None) -> IA3Linear:
    """Return (IA)³ on a layer of 3 to 2, in float64, with random weights."""
    init = Init(3, np.float64)
    base = Linear(3, 2, bias=bias, init=init) if base is None else base
    made = IA3Linear(base, init, on_input=on_input)
    for parameter in made.parameters():
        parameter.data = init.normal(*parameter.shape, std=1.0)
    return made


def plain(made: IA3Linear) -> Linear:
    assert isinstance(made.base_layer, Linear)
    return made.base_layer


# ---------- the formula ----------


def test_factors_on_the_output_multiply_the_bias() -> None:
    base = Linear.of(Parameter(np.array([[1.0, 2.0], [3.0, 4.0]])), Parameter(np.array([1.0, -1])))
    made = IA3Linear(base, Init(0, np.float64), on_input=False)
    made.ia3_l.data = np.array([[2.0], [10.0]])
    np.testing.assert_array_equal(made(Tensor(np.array([[1.0, 1.0]]))).data, [[8.0, 60.0]])


def test_factors_on_the_input_leave_the_bias_alone() -> None:
    base = Linear.of(Parameter(np.array([[1.0, 2.0], [3.0, 4.0]])), Parameter(np.array([1.0, -1])))
    made = IA3Linear(base, Init(0, np.float64), on_input=True)
    made.ia3_l.data = np.array([[2.0, 10.0]])
    np.testing.assert_array_equal(made(Tensor(np.array([[1.0, 1.0]]))).data, [[23.0, 45.0]])


@BOTH_SIDES
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_are_the_differences_and_the_formulas(on_input: bool, bias: bool) -> None:
    made = layer(on_input=on_input, bias=bias)
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(4, 5, 3)), requires_grad=True)
    assert check_gradients(lambda *_: made(x), [x, *made.parameters()]) < 1e-6
    for tensor in (x, *made.parameters()):
        tensor.grad = None
    g = rng.normal(size=(4, 5, 2))
    made(x).backward(g)
    w, factors = plain(made).weight.data, made.ia3_l.data.ravel()
    affine = plain(made)(x).data
    through = g @ w if on_input else (g * factors) @ w
    dl = (x.data * through if on_input else g * affine).sum(axis=(0, 1))
    assert made.ia3_l.grad is not None
    assert x.grad is not None
    np.testing.assert_allclose(made.ia3_l.grad.ravel(), dl, rtol=1e-12)
    np.testing.assert_allclose(x.grad, through * factors if on_input else through, rtol=1e-12)


@BOTH_SIDES
def test_factors_start_at_one_or_at_random(on_input: bool) -> None:
    base = Linear(300, 200)
    ones, drawn = (IA3Linear(base, Init(0), on_input=on_input, ones=o) for o in (True, False))
    assert ones.ia3_l.shape == drawn.ia3_l.shape == ((1, 300) if on_input else (200, 1))
    assert (ones.ia3_l.data == 1).all()
    assert abs(float(drawn.ia3_l.data.mean())) < 0.2
    assert abs(float(drawn.ia3_l.data.std()) - 1) < 0.2


@BOTH_SIDES
@pytest.mark.parametrize("bias", [True, False])
def test_it_merges_into_a_plain_layer_and_leaves_the_base_alone(on_input: bool, bias: bool) -> None:
    made = layer(on_input=on_input, bias=bias)
    before = Snapshot.of(made)
    merged, x = made.merge(), Tensor(np.random.default_rng(0).normal(size=(4, 3)))
    assert isinstance(merged, Linear)
    np.testing.assert_allclose(merged(x).data, made(x).data, rtol=1e-12)
    before.assert_unchanged(made)
    shared = {id(p) for p in made.parameters()} & {id(p) for p in merged.parameters()}
    assert not shared


def test_only_a_plain_base_is_merged() -> None:
    outer = layer(on_input=False, base=layer(on_input=True))
    assert tinygrad_peft_ia3.plugin.merge_module(outer) is None
    assert host().one(hookspecs.merge_module, Linear(2, 2)) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_unmerging_is_bit_exact_even_for_a_zero_factor(family: str) -> None:
    peft = adapted(IA3Config(target_modules="all-linear"), family)
    for parameter in peft.trainable_parameters():
        parameter.data = np.where(parameter.data < 1, 0, parameter.data)
    found, base = logits(peft), logits(small(FAMILIES[family], np.float64))
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), found, rtol=1e-12, atol=1e-12)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), found)
    np.testing.assert_array_equal(logits(peft.unload()), base)


# ---------- which modules, and on which side ----------


def vectors(peft: PeftModel) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the first layer, without the common start of the paths."""
    named = {n: p.shape for n, p in peft.record.stored_parameters(0).items() if ".0." in n}
    return {name.partition(".0.")[2]: shape for name, shape in named.items()}


USUAL: Mapping[str, dict[str, tuple[int, ...]]] = {
    "gpt2": {"attn.c_attn.ia3_l": (48, 1), "mlp.c_proj.ia3_l": (1, 32)},
    "llama": {
        "self_attn.k_proj.ia3_l": (8, 1),
        "self_attn.v_proj.ia3_l": (8, 1),
        "mlp.down_proj.ia3_l": (1, 24),
    },
    "bert": {
        "attention.self.key.ia3_l": (16, 1),
        "attention.self.value.ia3_l": (16, 1),
        "attention.output.dense.ia3_l": (1, 16),
        "output.dense.ia3_l": (1, 32),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_match_peft(family: str) -> None:
    peft = adapted(IA3Config(), family)
    assert vectors(peft) == USUAL[family]
    stored = peft.record.stored_parameters(0)
    assert all(name.startswith("base_model.model.") for name in stored)


@pytest.mark.parametrize(
    ("settings", "on_input"),
    [
        ({"target_modules": ["k_proj", "up_proj"]}, set()),
        ({"target_modules": ["k_proj", "down_proj"]}, {"down_proj"}),
        ({"target_modules": ["k_proj", "down_proj"], "feedforward_modules": []}, set()),
        (
            {"target_modules": ["k_proj", "up_proj"], "feedforward_modules": ["up_proj"]},
            {"up_proj"},
        ),
        ({"feedforward_modules": ["k_proj"]}, {"k_proj"}),
        ({"target_modules": ".*(k|up)_proj", "feedforward_modules": r".*\.mlp\..*"}, {"up_proj"}),
        ({"target_modules": ".*[kv]_proj", "feedforward_modules": ["down_proj"]}, set()),
    ],
    ids=str,
)
def test_feed_forward_modules_have_factors_on_their_input(
    settings: dict[str, Any], on_input: set[str]
) -> None:
    peft = adapted(IA3Config(**settings))
    wrapped = {r.seam.path.rpartition(".")[2]: r.after for r in peft.record.rewrites}
    found = {n for n, m in wrapped.items() if isinstance(m, IA3Linear) and m.on_input}
    assert found == on_input
    assert len(wrapped) > len(found)


def test_exclusions_and_saved_modules_are_respected() -> None:
    config = IA3Config(
        target_modules="all-linear", exclude_modules=["k_proj"], modules_to_save=["lm_head"]
    )
    ends = {rewrite.seam.path.rpartition(".")[2] for rewrite in adapted(config).record.rewrites}
    assert ends == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["donw_proj"]},
            "'donw_proj' is not in target_modules; did you mean 'down_proj'",
        ),
        (
            {"feedforward_modules": "(down"},
            r"feedforward_modules: invalid regular expression '\(down'",
        ),
        ({"target_modules": []}, "target_modules is empty"),
        ({"exclude_modules": "(down"}, r"exclude_modules: invalid regular expression '\(down'"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        IA3Config(**settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"feedforward_modules": ".*donw_proj"},
            "step 0: feedforward_modules '.*donw_proj' matches none of the targets",
        ),
        (
            {"target_modules": "all-linear", "feedforward_modules": ["down_proj", "donw_proj"]},
            "names 'donw_proj', which matches none of the targets; did you mean 'down_proj'",
        ),
    ],
)
def test_feed_forward_modules_outside_the_targets_are_refused(
    settings: dict[str, Any], problem: str
) -> None:
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=problem):
        get_peft_model(model, IA3Config(**settings), host=host())
    before.assert_unchanged(model)


class Other(Module):
    """A model without a family."""

    layer: Affine

    def __init__(self) -> None:
        self.layer = Linear(2, 2)


def test_a_model_without_a_family_needs_explicit_feed_forward_modules() -> None:
    site = Site("layer", "layer", Linear(2, 3), None, is_target=True, init=Init(), model=Other())
    config = IA3Config(target_modules=["layer"], feedforward_modules=["layer"])
    made = tinygrad_peft_ia3.plugin.adapt_module(config, site)
    assert isinstance(made, IA3Linear)
    assert made.on_input
    draft = Draft(
        Other(), (IA3Config(target_modules=["layer"]), config), (frozenset(["layer"]),) * 2
    )
    assert tinygrad_peft_ia3.plugin.check_recipe(draft) == [
        "step 0: feedforward_modules is required: defaults exist for gpt2, llama, bert"
    ]


def test_only_affine_layers_are_adapted() -> None:
    site = Site("norm", "norm", RMSNorm(4), None, is_target=True, init=Init(), model=Other())
    assert tinygrad_peft_ia3.plugin.adapt_module(IA3Config(), site) is None
    with pytest.raises(TargetError, match=r"'input_layernorm' names 3 modules.*cannot adapt"):
        adapted(IA3Config(target_modules=["input_layernorm"]))


# ---------- counting ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [IA3Config(), IA3Config(target_modules="all-linear", modules_to_save=["lm_head"])],
    ids=["usual", "all-linear"],
)
def test_parameters_are_counted(family: str, config: IA3Config) -> None:
    if family != "llama" and config.modules_to_save:
        config = IA3Config(target_modules="all-linear")
    real = adapted(config, family).get_nb_trainable_parameters()
    assert count_recipe(FAMILIES[family], config, host()) == real


def test_a_large_model_is_counted_without_its_weights() -> None:
    trainable, _ = count_recipe(named_shape("llama-7b"), IA3Config(), host())
    assert trainable == 32 * (4096 + 4096 + 11008)


# ---------- files ----------


def stored(folder: Path, config: IA3Config, family: str = "llama") -> PeftModel:
    peft = adapted(config, family)
    peft.save_pretrained(folder)
    return peft


def edit(folder: Path, **settings: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | settings))


def paths_of(peft: PeftModel) -> list[str]:
    return [rewrite.seam.path for rewrite in peft.record.rewrites]


def test_a_file_has_exactly_pefts_keys(tmp_path: Path) -> None:
    stored(tmp_path, IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    values = json.loads((tmp_path / CONFIG).read_text())
    own = {"target_modules", "feedforward_modules", "init_ia3_weights"}  # none is null
    noted = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision"}
    assert values.keys() == {*own, *noted, "modules_to_save"}
    assert (values["target_modules"], values["feedforward_modules"]) == (["k_proj"], [])


@pytest.mark.parametrize(
    ("config", "feedforward", "read"),
    [
        (IA3Config(target_modules=["k_proj"]), ["down_proj"], ()),
        (IA3Config(target_modules="all-linear"), ["down_proj"], r"(.*\.)?(down_proj)"),
        (IA3Config(target_modules=r".*\.k_proj"), ["down_proj"], ("down_proj",)),
    ],
    ids=["none is a target", "targets by their paths", "an expression"],
)
def test_settings_that_peft_cannot_read_back_are_repaired(
    config: IA3Config, feedforward: list[str], read: object, tmp_path: Path
) -> None:
    peft = stored(tmp_path, config)
    by_path = config.target_modules == "all-linear"
    targets = paths_of(peft) if by_path else config.target_modules
    edit(tmp_path, target_modules=targets, feedforward_modules=feedforward, fan_in_fan_out=True)
    loaded = PeftModel.from_pretrained(small(dtype=np.float64), tmp_path, host=host())
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    (settings,) = loaded.recipe
    assert isinstance(settings, IA3Config)
    assert settings.feedforward_modules == read


@pytest.mark.parametrize("setting", ["target_modules", "feedforward_modules"])
def test_a_list_of_names_must_hold_strings(setting: str, tmp_path: Path) -> None:
    stored(tmp_path, IA3Config(target_modules=["k_proj"], feedforward_modules=["k_proj"]))
    edit(tmp_path, **{setting: ["v_proj", 1, None]})
    with pytest.raises(ConfigError, match=rf"{setting}\[1\]: expected str, got int"):
        PeftModel.from_pretrained(small(), tmp_path, host=host())


def test_factors_for_the_other_side_are_refused(tmp_path: Path) -> None:
    stored(tmp_path, IA3Config(target_modules=["down_proj"], feedforward_modules=[]))
    edit(tmp_path, feedforward_modules=["down_proj"])
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=r"down_proj\.ia3_l is \(16, 1\), expected \(1, 24\)"):
        PeftModel.from_pretrained(model, tmp_path, host=host())
    before.assert_unchanged(model)


def inspected(folder: Path) -> list[str]:
    (folder / "recipe.json").unlink()  # it names the base
    return list(inspect_path(folder, host()).problems)


def test_a_folder_is_inspected_without_its_base(tmp_path: Path) -> None:
    peft = stored(tmp_path, IA3Config(feedforward_modules=["down_proj"]))
    report = inspect_path(tmp_path, host())
    assert report.sound, report.problems
    assert report.facts["method"] == "ia3"
    assert report.facts["modules"] == len(paths_of(peft))
    assert inspected(tmp_path) == []
    array = load_file(tmp_path / WEIGHTS)
    flipped = {name: np.ascontiguousarray(vector.T) for name, vector in array.items()}
    save_file(flipped, tmp_path / WEIGHTS)
    problems = list(inspect_path(tmp_path, host()).problems)
    assert len(problems) == len(array)
    first = "model.layers.0.mlp.down_proj.ia3_l: expected shape (1, in), got (24, 1)"
    second = "model.layers.0.self_attn.k_proj.ia3_l: expected shape (out, 1), got (1, 8)"
    assert first in problems
    assert second in problems


def test_default_sides_are_not_checked_without_the_base(tmp_path: Path) -> None:
    stored(tmp_path, IA3Config())
    assert inspected(tmp_path) == []


# ---------- weighted sums ----------


NARROW = IA3Config(target_modules=["k_proj", "up_proj"])


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7, -0.4), (2.0, 1.0)])
@pytest.mark.parametrize("other", [IA3Config(), NARROW], ids=["the same", "other targets"])
def test_the_combination_sums_the_changes(weights: tuple[float, float], other: IA3Config) -> None:
    peft = several(LLAMA, host(), a=IA3Config(), b=other)
    assert peft.add_weighted_adapter(["a", "b"], weights, "sum") == {}
    base = small(dtype=np.float64).state_dict()
    one, two = (merged_weights(peft, name) for name in ("a", "b"))
    for path, found in merged_weights(peft, "sum").items():
        start = base[path]
        expected = start + weights[0] * (one[path] - start) + weights[1] * (two[path] - start)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=path)


def test_weights_that_sum_to_one_average_the_vectors() -> None:
    peft = several(LLAMA, host(), a=IA3Config(), b=IA3Config())
    peft.add_weighted_adapter(["a", "b"], [0.25, 0.75], "sum")
    found = {}
    for name in ("a", "b", "sum"):
        peft.set_adapter(name)
        found[name] = [p.data for p in peft.trainable_parameters()]
    for a, b, both in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(both, 0.25 * a + 0.75 * b)
    assert peft.recipe == (IA3Config(),)


def test_one_adapter_of_weight_one_is_unchanged() -> None:
    peft = several(LLAMA, host(), a=NARROW)
    expected = logits(peft)
    peft.add_weighted_adapter(["a"], [1.0], "same")
    peft.set_adapter("same")
    np.testing.assert_array_equal(logits(peft), expected)
    assert peft.recipe == (NARROW,)


def test_a_combination_is_saved_and_loaded(tmp_path: Path) -> None:
    peft = several(LLAMA, host(), a=IA3Config(), b=NARROW)
    peft.add_weighted_adapter(["a", "b"], [0.5, 2.0], "sum")
    peft.set_adapter("sum")
    expected = logits(peft)
    peft.save_pretrained(tmp_path)
    folder = tmp_path / "sum"
    loaded = PeftModel.from_pretrained(small(dtype=np.float64), folder, host=host())
    np.testing.assert_array_equal(logits(loaded), expected)


def test_factors_on_both_sides_of_a_layer_cannot_be_combined() -> None:
    peft = several(LLAMA, host(), a=IA3Config(), b=IA3Config(feedforward_modules=[]))
    message = r"layers\.0\.mlp\.down_proj: one adapter multiplies its input, another its output"
    with pytest.raises(PeftError, match=message):
        peft.add_weighted_adapter(["a", "b"], [0.5, 0.5], "sum")


@pytest.mark.parametrize(
    ("kind", "rank", "problem"),
    [
        ("ties", None, "combination_type: expected 'linear', got 'ties'"),
        ("linear", 4, "rank: expected None, since vectors have no rank, got 4"),
    ],
)
def test_only_a_whole_weighted_sum_is_supported(
    kind: CombinationType, rank: int | None, problem: str
) -> None:
    peft = several(LLAMA, host(), a=IA3Config(), b=IA3Config())
    with pytest.raises(PeftError, match=problem):
        peft.add_weighted_adapter(["a", "b"], [1, 1], "sum", combination_type=kind, rank=rank)


def test_other_methods_are_left_to_their_plugins() -> None:
    site = Site("q", "q", Linear(2, 2), None, is_target=True, init=Init(), model=Other())
    assert host().one(hookspecs.adapt_module, LoraConfig(), site) is None
    peft = get_peft_model(small(BERT_CLASSIFIER), LoraConfig(r=2), adapter_name="a")
    assert peft.add_weighted_adapter(["a"], [0.5], "half") == {}
