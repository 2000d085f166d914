import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import tinygrad_peft_lora.plugin
from tests.peft.small import (
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    IDS,
    LLAMA,
    ShiftConfig,
    ShiftLinear,
    Snapshot,
    logits,
    lora_host,
    plugin,
    shake,
    shift,
    small,
)
from tinygrad_peft.errors import PeftError, PluginError, TargetError
from tinygrad_peft.nn import Affine, Embedding, Init, Linear, Module, Parameter, Transformer
from tinygrad_peft.peft import (
    Applied,
    Draft,
    Host,
    PeftConfig,
    PeftModel,
    Site,
    apply_recipe,
    capture_seams,
    get_peft_model,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import LoraConfig, LoraLinear

Adapt = Callable[[PeftConfig, Site], Module | None]

Q, V = LoraConfig(r=2, target_modules=["q_proj"]), LoraConfig(r=2, target_modules=["v_proj"])
SHIFT_Q = ShiftConfig(target_modules=["q_proj"])


def shift_host(adapt: Adapt = shift) -> Host:
    """LoRA, and a method of another plugin."""
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=adapt), "shift")
    return host


def added(peft: PeftModel, step: int) -> dict[str, np.ndarray]:
    return {name: p.data.copy() for name, p in peft.record.named_parameters(step).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


# ---------- the start ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_adapted_model_starts_as_the_base_bit_for_bit(
    family: str, dtype: type[np.floating]
) -> None:
    model = small(FAMILIES[family], dtype)
    before = logits(model)
    recipe = [
        LoraConfig(target_modules="all-linear"),
        ShiftConfig(target_modules="all-linear"),
        LoraConfig(target_modules="all-linear", init_lora_weights="gaussian", use_rslora=True),
    ]
    peft = get_peft_model(model, recipe, host=shift_host())
    np.testing.assert_array_equal(logits(peft), before)
    assert {p.dtype for p in peft.parameters()} == {np.dtype(dtype)}


def test_only_what_the_steps_added_is_trained() -> None:
    model = small()
    base = list(model.parameters())
    peft = get_peft_model(model, [Q, SHIFT_Q], host=shift_host())
    assert not any(p.requires_grad for p in base)
    ids = {id(p) for step in (0, 1) for p in peft.record.named_parameters(step).values()}
    assert {id(p) for p in peft.trainable_parameters()} == ids
    assert len(ids) == 3 * (2 + 1)


def test_names_are_those_of_the_original_model_for_every_step() -> None:
    peft = get_peft_model(small(), [Q, SHIFT_Q, Q], host=shift_host())
    place = "model.layers.0.self_attn.q_proj"
    names = [list(peft.record.named_parameters(step))[:2] for step in range(3)]
    assert names[0] == names[2] == [f"{place}.lora_A.weight", f"{place}.lora_B.weight"]
    assert names[1][0] == f"{place}.shift"


def test_the_first_step_is_the_innermost() -> None:
    peft = get_peft_model(small(), [Q, SHIFT_Q], host=shift_host())
    outer = peft.base_model.blocks[0].attn.get_child("q_proj")  # type: ignore[attr-defined]
    assert isinstance(outer, ShiftLinear)
    assert isinstance(outer.base_layer, LoraLinear)
    assert isinstance(outer.base_layer.base_layer, Linear)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_added_is_in_the_mode_of_the_model(training: bool) -> None:
    model = small()
    model.train(mode=training)
    peft = get_peft_model(model, Q, host=lora_host())
    assert {module.training for _, module in peft.named_modules()} == {training}


# ---------- seeds ----------


def test_the_same_seed_gives_the_same_start_and_another_seed_another() -> None:
    starts = [
        added(get_peft_model(small(), [Q, Q], seed=seed, host=lora_host()), 0) for seed in (3, 3, 4)
    ]
    assert_same(starts[0], starts[1])
    for name, value in starts[0].items():
        assert np.array_equal(value, starts[2][name]) == name.endswith("lora_B.weight")


def test_each_place_and_each_step_draws_its_own_weights() -> None:
    peft = get_peft_model(small(), [Q, Q], host=lora_host())
    drawn = [a for step in (0, 1) for n, a in added(peft, step).items() if "lora_A" in n]
    for i, first in enumerate(drawn):
        assert not any(np.array_equal(first, second) for second in drawn[:i])


def test_a_later_step_and_other_targets_do_not_change_the_start_of_a_place() -> None:
    alone = added(get_peft_model(small(), Q, host=shift_host()), 0)
    followed = added(get_peft_model(small(), [Q, SHIFT_Q, V], host=shift_host()), 0)
    both = LoraConfig(r=2, target_modules=["v_proj", "q_proj"])
    among = added(get_peft_model(small(), both, host=shift_host()), 0)
    assert_same(alone, followed)
    assert_same(alone, {name: value for name, value in among.items() if "q_proj" in name})


# ---------- order ----------


class Around(Module):
    """Wraps an attention layer and adds what it got."""

    def __init__(self, base: Module) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 4
        self.base = base
        self.scale = ShiftLinear(Linear(1, 1), 0.0, Init()).shift

    def __call__(self, x: Tensor, context: object) -> Tensor:
        inner: Tensor = self.base(x, context)  # type: ignore[operator]
        return inner + self.scale


def around(config: PeftConfig, site: Site) -> Module | None:
    is_attention = site.path.endswith("self_attn") and site.is_target
    if isinstance(config, ShiftConfig) and is_attention:
        return Around(site.module)
    return shift(config, site)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_overlapping_wraps_work_in_any_order(first: int) -> None:
    recipe = [
        LoraConfig(r=2, target_modules=["q_proj", "o_proj"]),
        ShiftConfig(target_modules=["self_attn"]),
        ShiftConfig(target_modules=["q_proj"]),
    ]
    turned = recipe[first:] + recipe[:first]
    model = small()
    before = Snapshot.of(model)
    peft = get_peft_model(model, turned, host=shift_host(around))
    counts = [len(peft.record.named_parameters(step)) for step in range(3)]
    assert counts == [(12, 3, 3)[(first + step) % 3] for step in range(3)]
    shake(peft)
    changed = logits(peft)
    assert np.isfinite(changed).all()
    peft.unload()
    before.assert_unchanged(model)


def test_the_order_of_a_shift_and_lora_does_not_change_their_sum() -> None:
    outputs = []
    for recipe in ([Q, SHIFT_Q], [SHIFT_Q, Q]):
        peft = get_peft_model(small(), recipe, host=shift_host())
        for step in (0, 1):
            for name, parameter in peft.record.named_parameters(step).items():
                parameter.data = np.full_like(parameter.data, 0.3 if "shift" in name else 0.1)
        outputs.append(logits(peft))
    # LoRA reads a layer's input, so a shift of the output below it or above it is the same.
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_the_order_of_plugins_does_not_matter() -> None:
    forward = shift_host()
    backward = Host()
    backward.register(plugin(ShiftConfig, adapt=shift), "shift")
    backward.register(tinygrad_peft_lora.plugin, "lora")
    results = []
    for host in (forward, backward):
        peft = get_peft_model(small(), [SHIFT_Q, Q], host=host)
        shake(peft)
        results.append(logits(peft))
    np.testing.assert_array_equal(results[0], results[1])


def test_three_stacked_methods_are_all_trained() -> None:
    peft = get_peft_model(small(), [Q, SHIFT_Q, Q], host=shift_host())
    shake(peft)
    peft.loss(IDS, IDS).backward()
    for parameter in peft.trainable_parameters():
        assert parameter.grad is not None
        assert np.abs(parameter.grad).max() > 0


# ---------- atomic ----------


def failing_at(number: int, error: BaseException) -> Adapt:
    """Adapts as ShiftConfig does, and raises at its target of that number."""
    seen = 0

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        nonlocal seen
        if isinstance(config, ShiftConfig) and site.is_target:
            seen += 1
            if seen == number:
                raise error
        return shift(config, site)

    return adapt


def partly_trained() -> Transformer:
    """A model with some frozen weights."""
    model = small()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad = i % 3 == 0
    return model


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), MemoryError()])
def test_a_plugin_that_fails_leaves_the_model_as_it_was(number: int, error: BaseException) -> None:
    model = partly_trained()
    before = Snapshot.of(model)
    with pytest.raises(PluginError if isinstance(error, RuntimeError) else type(error)):
        apply_recipe(model, [Q, SHIFT_Q], shift_host(failing_at(number, error)))
    before.assert_unchanged(model)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Embedding(3, 3), r"q_proj: expected Affine, got Embedding \(no attribute in_features"),
        ("text", "plugin 'shift', hook adapt_module: expected Module or None, got 'text'"),
        (True, "adapt_module: expected Module or None, got True"),
    ],
)
def test_an_answer_that_may_not_stand_there_leaves_the_model_as_it_was(
    answer: object, message: str
) -> None:
    def adapt(config: PeftConfig, site: Site) -> Module | None:
        wrong = isinstance(config, ShiftConfig) and site.path.endswith("2.self_attn.q_proj")
        return answer if wrong else shift(config, site)  # type: ignore[return-value]

    model = partly_trained()
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=message):
        apply_recipe(model, [Q, SHIFT_Q], shift_host(adapt))
    before.assert_unchanged(model)


def test_the_unchanged_module_is_refused_as_an_answer() -> None:
    def adapt(config: PeftConfig, site: Site) -> Module | None:
        return site.module if isinstance(config, ShiftConfig) else None

    with pytest.raises(PluginError, match="expected a new module, got the site's own"):
        apply_recipe(small(), [SHIFT_Q], shift_host(adapt))


def test_an_answer_that_hides_parameters_leaves_the_model_as_it_was() -> None:
    class Hiding(ShiftLinear):
        def __init__(self, base: Affine, init: Init) -> None:
            super().__init__(base, 0.0, init)
            self.by_name = {"shift": Parameter(init.ones(2))}

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        wanted = isinstance(config, ShiftConfig) and site.is_target
        return (
            Hiding(site.module, site.init) if wanted and isinstance(site.module, Affine) else None
        )

    model = small()
    before = Snapshot.of(model)
    message = r"shift: Hiding for model\.layers\.0\.\S+ hides parameters.* got by_name$"
    with pytest.raises(PluginError, match=message):
        apply_recipe(model, [SHIFT_Q], shift_host(adapt))
    before.assert_unchanged(model)


def test_an_answer_may_refer_to_the_models_own_parameters() -> None:
    def adapt(config: PeftConfig, site: Site) -> Module | None:
        made = shift(config, site)
        if made is not None:
            made.site = site  # type: ignore[attr-defined]
        return made

    record = apply_recipe(small(), [SHIFT_Q], shift_host(adapt))
    assert record.rewrites[0].after.hidden_parameters() == ["site"]


def test_parameters_in_a_list_are_trained_and_saved(tmp_path: Path) -> None:
    class Listed(Module):
        base_layer: Affine

        def __init__(self, base: Affine, init: Init) -> None:
            self.in_features, self.out_features = base.in_features, base.out_features
            self.base_layer = base
            self.shifts = [Parameter(init.zeros(base.out_features)) for _ in range(2)]

        def __call__(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.shifts[0] + self.shifts[1] * 2.0

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        wanted = isinstance(config, ShiftConfig) and site.is_target
        return (
            Listed(site.module, site.init) if wanted and isinstance(site.module, Affine) else None
        )

    peft = get_peft_model(small(), SHIFT_Q, host=shift_host(adapt))
    assert list(peft.record.rewrites[0].added) == ["shifts.0", "shifts.1"]
    shake(peft)
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=shift_host(adapt))
    np.testing.assert_array_equal(logits(loaded), logits(peft))


def test_a_list_of_blocks_takes_blocks_alone() -> None:
    def adapt(config: PeftConfig, site: Site) -> Module | None:
        wrong = isinstance(config, ShiftConfig) and site.path == "model.layers.1"
        return Linear(2, 2) if wrong else None

    model = small()
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=r"called as \(x, context\), got Linear, called as \(x\)"):
        apply_recipe(model, [ShiftConfig(target_modules=["layers.1"])], shift_host(adapt))
    before.assert_unchanged(model)


def test_an_observer_that_fails_leaves_the_model_as_it_was() -> None:
    def recipe_applied(event: Applied) -> None:
        raise RuntimeError("log is full")

    host = lora_host()
    mark = hookimpl(hookspecs.recipe_applied)
    host.register(SimpleNamespace(recipe_applied=mark(recipe_applied)), "log")
    model = partly_trained()
    before = Snapshot.of(model)
    with pytest.raises(PluginError, match="'log', hook recipe_applied: RuntimeError: log is full"):
        get_peft_model(model, [Q], host=host)
    before.assert_unchanged(model)


def test_targets_that_are_not_there_leave_the_model_as_it_was() -> None:
    model = partly_trained()
    before = Snapshot.of(model)
    for recipe in ([Q, LoraConfig(target_modules=["x"])], [Q, LoraConfig(target_modules=["norm"])]):
        with pytest.raises(TargetError):
            apply_recipe(model, recipe, lora_host())
        before.assert_unchanged(model)


# ---------- what is refused ----------


def test_an_empty_recipe_is_refused() -> None:
    with pytest.raises(PeftError, match="at least one step"):
        get_peft_model(small(), [], host=lora_host())


@pytest.mark.parametrize("step", ["lora", None, LoraConfig])
def test_a_step_that_is_not_a_config_is_refused(step: object) -> None:
    with pytest.raises(PeftError, match="recipe, step 1: expected a PeftConfig, got "):
        get_peft_model(small(), [Q, step], host=lora_host())  # type: ignore[list-item]


def test_a_method_that_no_plugin_provides_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no registered plugin provides ShiftConfig \(shift\)"):
        get_peft_model(small(), SHIFT_Q, host=lora_host())
    with pytest.raises(PluginError, match="provides LoraConfig"):
        get_peft_model(small(), Q, host=Host())


def test_all_objections_of_all_plugins_are_in_one_error() -> None:
    def objector(*reasons: str) -> object:
        def check_recipe(draft: Draft) -> Sequence[str]:
            return reasons

        return SimpleNamespace(check_recipe=hookimpl(hookspecs.check_recipe)(check_recipe))

    host = lora_host()
    host.register(objector("too slow", "too dear"), "accountant")
    host.register(objector("too ugly"), "critic")
    model = partly_trained()
    before = Snapshot.of(model)
    idle = LoraConfig(target_modules=["q_proj"], rank_pattern={"v_proj": 2})
    with pytest.raises(PeftError, match="the recipe is refused") as caught:
        apply_recipe(model, [idle], host)
    for reason in ("too slow", "too dear", "too ugly", "'v_proj' matches none of the targets"):
        assert reason in str(caught.value)
    before.assert_unchanged(model)


def test_a_module_that_an_earlier_step_took_is_not_saved_by_a_later_one() -> None:
    first = LoraConfig(target_modules=["query", "classifier"])
    saving = LoraConfig(target_modules=["value"], modules_to_save=["classifier"])
    model = small(BERT_CLASSIFIER)
    before = Snapshot.of(model)
    for recipe in ([first, saving], [saving, saving]):
        with pytest.raises(PeftError, match=r"step 1: modules_to_save: classifier .* step 0"):
            apply_recipe(model, recipe, lora_host())
        before.assert_unchanged(model)
    get_peft_model(model, [saving, first], host=lora_host())


# ---------- events for plugins ----------


def test_plugins_are_asked_with_the_recipe_its_targets_and_the_untouched_model() -> None:
    drafts: list[Draft] = []
    events: list[Applied] = []

    def check_recipe(draft: Draft) -> Sequence[str]:
        drafts.append(draft)
        assert not any(isinstance(m, LoraLinear) for _, m in draft.model.named_modules())
        return []

    def recipe_applied(event: Applied) -> None:
        events.append(event)

    host = lora_host()
    watcher = SimpleNamespace(
        check_recipe=hookimpl(hookspecs.check_recipe)(check_recipe),
        recipe_applied=hookimpl(hookspecs.recipe_applied)(recipe_applied),
    )
    host.register(watcher, "watcher")
    model = small()
    get_peft_model(model, [Q, V], host=host)
    q, v = ([f"model.layers.{n}.self_attn.{k}_proj" for n in range(3)] for k in "qv")
    ((draft,), (event,)) = (drafts, events)
    assert draft.recipe == event.recipe == (Q, V)
    assert draft.targets == (frozenset(q), frozenset(v))
    assert event.model is model
    assert list(event.rewritten) == q + v


def test_a_site_tells_its_path_layer_and_whether_it_is_meant() -> None:
    sites: list[Site] = []

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        sites.append(site)
        return shift(config, site)

    apply_recipe(small(GPT2), [ShiftConfig(target_modules=["c_fc"])], shift_host(adapt))
    by_path = {site.path: site for site in sites}
    assert len(by_path) == len(sites)
    fc = by_path["transformer.h.1.mlp.c_fc"]
    assert (fc.layer, fc.is_target) == (1, True)
    assert isinstance(fc.module, Affine)
    assert (by_path["lm_head"].layer, by_path["lm_head"].is_target) == (None, False)
    assert {s.path for s in sites if s.is_target} == {f"transformer.h.{n}.mlp.c_fc" for n in (0, 1)}


def test_the_places_of_a_step_know_its_targets_and_share_what_one_of_them_makes() -> None:
    shared: list[tuple[int, list[float]]] = []

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        if site.is_target:
            shared.append((len(site.targets), site.common.get(list, list)))
        return shift(config, site)

    model = small(GPT2)
    steps = [ShiftConfig(target_modules=["c_fc", "c_attn"]), ShiftConfig(target_modules=["c_fc"])]
    apply_recipe(model, steps, shift_host(adapt))
    assert [count for count, _ in shared] == [4, 4, 4, 4, 2, 2]
    first, second = shared[0][1], shared[4][1]
    assert all(own is first for _, own in shared[:4])
    assert shared[5][1] is second is not first


def test_every_place_is_a_seam_parents_first() -> None:
    seams = capture_seams(small(LLAMA))
    paths = [seam.path for seam in seams]
    assert len(set(paths)) == len(paths)
    assert paths.index("model.layers.0") < paths.index("model.layers.0.self_attn")
    assert paths.index("model.layers.0.self_attn") < paths.index("model.layers.0.self_attn.q_proj")
    assert [seam.path for seam in seams if seam.is_head] == ["lm_head"]


# ---------- copies ----------


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    peft = get_peft_model(small(), [Q, V, Q], host=lora_host())
    shake(peft)
    before, snapshot = logits(peft), Snapshot.of(peft)
    twin = copy.deepcopy(peft)
    np.testing.assert_array_equal(logits(twin), before)
    own = {id(p) for p in peft.parameters()}
    assert not own & {id(p) for p in twin.parameters()}
    shake(twin, seed=1)
    twin.merge_adapter()
    twin.unmerge_adapter()
    assert not np.array_equal(logits(twin), before)
    twin.unload()
    snapshot.assert_unchanged(peft)
    np.testing.assert_array_equal(logits(peft), before)
    peft.merge_adapter()
    np.testing.assert_array_equal(logits(twin), logits(small()))


def test_a_merged_model_is_copied_as_merged() -> None:
    peft = get_peft_model(small(), Q, host=lora_host())
    shake(peft)
    adapted = logits(peft)
    peft.merge_adapter()
    twin = copy.deepcopy(peft)
    np.testing.assert_array_equal(logits(twin), logits(peft))
    twin.unmerge_adapter()
    np.testing.assert_array_equal(logits(twin), adapted)


# ---------- configs that stand for several steps, and names of their own ----------


@dataclass(frozen=True, kw_only=True)
class TwiceConfig(ShiftConfig):
    """Stands for two shifts."""

    peft_type: ClassVar[str] = "TWICE"

    def steps(self) -> tuple[PeftConfig, ...]:
        return (ShiftConfig(start=self.start), ShiftConfig(start=2 * self.start))


def test_a_config_may_stand_for_several_steps() -> None:
    host = Host()
    host.register(plugin(ShiftConfig, TwiceConfig, adapt=shift), "shift")
    peft = get_peft_model(small(), [TwiceConfig(start=1.0)], host=host)
    assert peft.recipe == (ShiftConfig(start=1.0), ShiftConfig(start=2.0))
    assert {p.data.item() for p in peft.trainable_parameters()} == {1.0, 2.0}


def test_a_site_tells_its_slot_its_model_and_whether_weights_will_follow() -> None:
    seen: list[Site] = []

    def look(config: PeftConfig, site: Site) -> Module | None:
        seen.append(site)
        return shift(config, site)

    host = Host()
    host.register(plugin(ShiftConfig, adapt=look), "shift")
    model = small()
    apply_recipe(model, ShiftConfig(), host, loading=True)
    slots = {site.path: site.slot for site in seen}
    assert slots["model.layers.1.mlp"] == "mlp"
    assert slots["model.layers.1.self_attn.o_proj"] == "o_proj"
    assert all(site.model is model and site.loading for site in seen)
