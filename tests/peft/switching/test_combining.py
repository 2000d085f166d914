"""Weighted sums of adapters."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import (
    BERT_CLASSIFIER,
    FAMILIES,
    LLAMA,
    ShiftConfig,
    Snapshot,
    logits,
    plugin,
    shake,
    shift,
    small,
)
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Linear, TransformerConfig
from tinygrad_peft.peft import (
    Combination,
    CombinationType,
    Combined,
    Host,
    PeftConfig,
    PeftModel,
    get_peft_model,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_lora import LoraConfig, LoraLinear
from tinygrad_peft_lora import plugin as lora_plugin

TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"], "bert": ["query", "dense"]}
WEIGHTS = (0.7, -0.4, 1.9)


def sources(family: str) -> dict[str, LoraConfig]:
    """LoRAs of other ranks, scalings, patterns and targets."""
    names = TARGETS[family]
    return {
        "plain": LoraConfig(r=2, lora_alpha=3, target_modules=names),
        "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=names),
        "patterns": LoraConfig(
            r=3,
            target_modules=names[:1],
            rank_pattern={r"0\..*": 1},
            alpha_pattern={r"1\..*": 16, ".*": 5},
        ),
    }


def made(
    config: TransformerConfig,
    recipes: dict[str, PeftConfig | Sequence[PeftConfig]],
    host: Host | None = None,
    dtype: type[np.floating] = np.float64,
) -> PeftModel:
    peft: PeftModel | None = None
    for seed, (name, recipe) in enumerate(recipes.items()):
        if peft is None:
            peft = get_peft_model(small(config, dtype), recipe, adapter_name=name, host=host)
        else:
            peft.add_adapter(name, recipe)
            peft.set_adapter(name)
        shake(peft, seed)
    assert peft is not None
    return peft


def three(family: str, dtype: type[np.floating] = np.float64) -> PeftModel:
    return made(FAMILIES[family], dict(sources(family)), dtype=dtype)


def deltas(peft: PeftModel, name: str) -> dict[str, Array]:
    """The update of each adapted layer's weight."""
    peft.set_adapter(name)
    layers = {r.seam.path: r.after for r in peft.record.rewrites}
    return {path: m.delta() for path, m in layers.items() if isinstance(m, LoraLinear)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_is_exact_whatever_the_ranks_and_scalings(family: str) -> None:
    peft = three(family)
    assert peft.add_weighted_adapter(list(sources(family)), WEIGHTS, "sum") == {}
    parts = [deltas(peft, name) for name in sources(family)]
    found = deltas(peft, "sum")
    assert set(found) == {path for part in parts for path in part}
    for path, delta in found.items():
        pairs = zip(WEIGHTS, parts, strict=True)
        expected = sum(w * part[path] for w, part in pairs if path in part)
        np.testing.assert_allclose(delta, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["plain", "rslora", "patterns"])
def test_one_adapter_of_weight_one_is_itself(family: str, name: str) -> None:
    peft = three(family, np.float32)
    peft.set_adapter(name)
    expected = logits(peft)
    assert peft.add_weighted_adapter([name], [1.0], "same") == {}
    peft.set_adapter("same")
    np.testing.assert_array_equal(logits(peft), expected)
    assert peft.recipe == (sources(family)[name],)


def test_an_adapter_less_itself_is_nothing() -> None:
    peft = three("llama")
    peft.add_adapter("twin", sources("llama")["plain"])
    ours, twin = deltas(peft, "plain"), deltas(peft, "twin")
    assert ours.keys() == twin.keys()
    peft.set_adapter("plain")
    values = [p.data for p in peft.trainable_parameters()]
    peft.set_adapter("twin")
    for parameter, value in zip(peft.trainable_parameters(), values, strict=True):
        parameter.data = value.copy()
    peft.add_weighted_adapter(["plain", "twin"], [2, -2], "none")
    for delta in deltas(peft, "none").values():
        np.testing.assert_allclose(delta, 0, atol=1e-15)


def test_a_rank_keeps_what_is_nearest_and_tells_what_is_lost() -> None:
    peft = three("llama")
    names = list(sources("llama"))
    peft.add_weighted_adapter(names, WEIGHTS, "sum")
    lost = peft.add_weighted_adapter(names, WEIGHTS, "small", rank=3)
    whole, near = deltas(peft, "sum"), deltas(peft, "small")
    assert set(lost) <= set(whole)
    for path, wanted in whole.items():
        s = np.linalg.svd(wanted, compute_uv=False)
        best = math.sqrt((s[3:] ** 2).sum() / (s**2).sum())
        error = float(np.linalg.norm(near[path] - wanted) / np.linalg.norm(wanted))
        assert error == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert lost.get(path, 0) == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert np.linalg.matrix_rank(near[path]) <= 3
    assert max(lost.values()) > 0.05


def test_a_rank_that_is_large_enough_loses_nothing() -> None:
    peft = three("llama")
    assert peft.add_weighted_adapter(list(sources("llama")), WEIGHTS, "sum", rank=9) == {}


def test_ties_keeps_the_largest_and_averages_those_of_the_elected_sign() -> None:
    peft = three("llama")
    names, weights = ["plain", "rslora"], [1.0, 0.5]
    peft.add_weighted_adapter(
        names, weights, "ties", combination_type="ties", density=0.25, rank=16
    )
    parts = [deltas(peft, name) for name in names]
    for path, found in deltas(peft, "ties").items():
        kept = []
        for weight, part in zip(weights, parts, strict=True):
            order = np.sort(np.abs(part[path]).reshape(-1))
            threshold = order[-round(0.25 * order.size)]
            kept.append(weight * np.where(np.abs(part[path]) >= threshold, part[path], 0))
        one, other = kept
        sign = np.sign(one + other)
        expected = np.zeros_like(one)
        for place in np.ndindex(one.shape):
            agree = [
                x[place] for x in (one, other) if x[place] and np.sign(x[place]) == sign[place]
            ]
            expected[place] = np.mean(agree) if agree else 0
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_dare_is_the_sum_on_average_and_the_same_for_the_same_seed() -> None:
    peft = three("llama")
    names, weights = ["plain", "rslora"], [1.0, 0.5]

    def drawn(name: str, seed: int) -> dict[str, Array]:
        how = {"combination_type": "dare_linear", "density": 0.5, "rank": 16, "seed": seed}
        peft.add_weighted_adapter(names, weights, name, **how)  # type: ignore[arg-type]
        return deltas(peft, name)

    peft.add_weighted_adapter(names, weights, "sum")
    path, expected = next(iter(deltas(peft, "sum").items()))
    many = [drawn(f"d{seed}", seed)[path] for seed in range(200)]
    np.testing.assert_allclose(np.mean(many, axis=0), expected, atol=5 * np.std(many) / 200**0.5)
    np.testing.assert_array_equal(drawn("again", 7)[path], many[7])
    assert not np.allclose(many[7], many[8])


def test_dare_ties_keeps_elements_of_one_sign() -> None:
    peft = three("llama")
    peft.add_weighted_adapter(
        ["plain"], [2.0], "one", combination_type="dare_ties", density=0.5, rank=16
    )
    whole = deltas(peft, "plain")
    for path, found in deltas(peft, "one").items():
        share = np.isclose(found, 4 * whole[path], rtol=1e-6) | np.isclose(found, 0, atol=1e-12)
        assert share.all()


def test_the_combination_is_saved_and_read_like_any_other(tmp_path: Path) -> None:
    peft = three("llama")
    peft.add_weighted_adapter(list(sources("llama")), WEIGHTS, "sum")
    peft.set_adapter("sum")
    peft.save_pretrained(tmp_path, adapters=["sum"])
    loaded = PeftModel.from_pretrained(small(LLAMA, np.float64), tmp_path / "sum")
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_modules_that_were_trained_whole_are_summed_by_their_deltas() -> None:
    saving = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    bare = LoraConfig(r=2, target_modules=["query"])
    peft = made(BERT_CLASSIFIER, {"a": saving, "b": saving, "c": bare})
    peft.add_weighted_adapter(["a", "b", "c"], [0.5, 2.0, 1.0], "sum")

    def head(name: str) -> Array:
        peft.set_adapter(name)
        layer = peft.base_model.classifier
        assert isinstance(layer, Linear)
        return layer.weight.data

    base = head("c")
    expected = base + 0.5 * (head("a") - base) + 2 * (head("b") - base)
    np.testing.assert_allclose(head("sum"), expected, rtol=1e-12)
    assert peft.recipe[0].modules_to_save == ("classifier",)


# ---------- what cannot be ----------


def test_all_invalid_settings_are_listed_at_once() -> None:
    peft = three("llama")
    before = Snapshot.of(peft)
    with pytest.raises(PeftError) as caught:
        peft.add_weighted_adapter(
            ["plain", "rslora"],
            [1.0, math.nan, 2.0],
            "sum",
            combination_type="svd",  # type: ignore[arg-type]
            rank=0,
            density=0,
        )
    for part in (
        "weights: expected 2, one per adapter ('plain', 'rslora'), got 3",
        "expected finite numbers",
        "combination_type: expected one of linear, ties, dare_linear, dare_ties, got 'svd'",
        "rank: expected at least 1, got 0",
        "density: expected above 0",
    ):
        assert part in str(caught.value)
    before.assert_unchanged(peft)


def test_weights_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(PeftError, match="expected finite numbers"):
        three("llama").add_weighted_adapter(["plain"], ["much"], "x")  # type: ignore[list-item]


def test_adapters_that_hold_nan_are_refused_by_name() -> None:
    peft = three("llama")
    peft.set_adapter("rslora")
    peft.trainable_parameters()[0].data[0, 0] = np.nan
    before = Snapshot.of(peft)
    expected = (
        r"'rslora' holds NaN or infinity: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight"
    )
    with pytest.raises(PeftError, match=expected):
        peft.add_weighted_adapter(["plain", "rslora"], [1, 1], "x", rank=2)
    before.assert_unchanged(peft)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear"])
def test_sums_that_overflow_are_refused_by_name(rank: int | None, kind: CombinationType) -> None:
    peft = three("llama", np.float32)
    before = Snapshot.of(peft)
    expected = r"model\.layers\.0\.self_attn\.q_proj.*(would hold NaN or infinity|is too large)"
    with pytest.raises(PeftError, match=expected):
        peft.add_weighted_adapter(
            ["plain", "rslora"], [1e300, 1e300], "x", rank=rank, combination_type=kind
        )
    before.assert_unchanged(peft)


def test_a_module_that_only_one_adapter_trained_whole_is_refused() -> None:
    both, one = ".*(q_proj|up_proj)", ["up_proj"]
    peft = made(
        LLAMA,
        {
            "a": LoraConfig(r=2, target_modules=both),
            "b": LoraConfig(r=2, target_modules=both, modules_to_save=one),
        },
    )
    with pytest.raises(PeftError, match=r"mlp\.up_proj: one adapter trained it whole, another"):
        peft.add_weighted_adapter(["a", "b"], [1, 1], "x", rank=2)
    assert list(peft.adapters) == ["a", "b"]


def test_a_single_adapter_of_weight_one_is_pruned_where_that_is_asked_for() -> None:
    peft = three("llama")
    peft.add_weighted_adapter(["plain"], [1.0], "pruned", combination_type="dare_ties", density=0.5)
    whole, pruned = deltas(peft, "plain"), deltas(peft, "pruned")
    assert all(not np.allclose(pruned[path], delta) for path, delta in whole.items())


def test_names_are_checked() -> None:
    peft = three("llama")
    with pytest.raises(PeftError, match="did you mean 'plain'"):
        peft.add_weighted_adapter(["plian"], [1], "sum")
    with pytest.raises(PeftError, match="adapter 'rslora' already exists"):
        peft.add_weighted_adapter(["plain"], [1], "rslora")
    with pytest.raises(PeftError, match="adapters: expected different names"):
        peft.add_weighted_adapter(["plain", "plain"], [1, 2], "sum")
    with pytest.raises(PeftError, match="adapters: expected at least one"):
        peft.add_weighted_adapter([], [], "sum")


def test_recipes_of_other_methods_are_not_combined() -> None:
    host = Host()
    host.register(lora_plugin, "lora")
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    lora, shifted = sources("llama")["plain"], ShiftConfig()
    peft = made(LLAMA, {"a": lora, "b": [lora, shifted], "c": shifted, "d": shifted}, host)
    with pytest.raises(PeftError, match=r"(?s)'a' is lora\n.*'b' is lora \+ shift"):
        peft.add_weighted_adapter(["a", "b"], [1, 1], "sum")
    with pytest.raises(PeftError, match="step 0: adapters of shift cannot be combined"):
        peft.add_weighted_adapter(["c", "d"], [1, 1], "sum")


def test_an_answer_that_does_not_fit_its_own_settings_is_refused() -> None:
    def combine_adapters(config: PeftConfig, combination: Combination) -> Combined | None:
        source = combination.sources[0]
        return Combined(config, {path: {} for path in source.tensors})

    host = Host()
    answer = hookimpl(hookspecs.combine_adapters)(combine_adapters)
    host.register(plugin(ShiftConfig, adapt=shift, combine_adapters=answer), "shift")
    peft = made(LLAMA, {"a": ShiftConfig()}, host)
    before = Snapshot.of(peft)
    with pytest.raises(
        PeftError, match=r"(?s)does not fit its settings:.*missing: .*o_proj\.shift"
    ):
        peft.add_weighted_adapter(["a"], [1], "sum")
    before.assert_unchanged(peft)
    assert tuple(peft.adapters) == ("a",)
