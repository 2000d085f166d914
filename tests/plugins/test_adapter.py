import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinygrad_peft_adapter.plugin
from tests.peft.small import FAMILIES, IDS, LLAMA, Snapshot, block_of, logits, lora_host, shake
from tests.peft.small import small as small_model
from tinygrad_peft import reference
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import ConfigError, PeftError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import Context, Init, Layer, Module, Norm, Roles
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    PeftModel,
    apply_recipe,
    config_from_dict,
    count_recipe,
    get_peft_model,
    methods_of,
    parse_method,
)
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_adapter import (
    AttentionAdapter,
    BottleneckAdapter,
    BottleneckAdapterConfig,
    LayerAdapter,
    ResidualAdapter,
)
from tinygrad_peft_lora import LoraConfig, LoraLinear

PLACEMENTS = ("houlsby", "pfeiffer", "parallel", "after the sum", "beside the sum")
DTYPES: tuple[type[np.floating], ...] = (np.float32, np.float64)
PFEIFFER = BottleneckAdapterConfig(bottleneck_dim=4)
HOULSBY = replace(PFEIFFER, placement="houlsby", activation="gelu")
PARALLEL = replace(PFEIFFER, placement="parallel", activation="tanh")
LORA = LoraConfig(r=2, target_modules="all-linear")
OPTIONS = {
    "houlsby": HOULSBY,
    "pfeiffer": PFEIFFER,
    "parallel": PARALLEL,
    "after the sum": replace(HOULSBY, reads="residual"),
    "beside the sum": replace(PARALLEL, reads="residual"),
    "no bias": replace(HOULSBY, bias=False),
    "layer norm": replace(PARALLEL, layer_norm=True),
    "all there is": replace(HOULSBY, layer_norm=True, scaling=0.5, activation="silu"),
    "reduced": BottleneckAdapterConfig(reduction_factor=5),
    "one layer": replace(HOULSBY, layers_to_transform=1),
    "two layers, one twice": replace(PFEIFFER, layers_to_transform=[1, 0, 1]),
    "default": BottleneckAdapterConfig(),
}


def host() -> Host:
    made = lora_host()
    made.register(tinygrad_peft_adapter.plugin, "adapter")
    return made


def adapted(
    recipe: PeftConfig | Sequence[PeftConfig],
    family: str = "llama",
    dtype: type[np.floating] = np.float32,
) -> PeftModel:
    """Return a small model of the family with an untrained recipe."""
    return get_peft_model(small_model(FAMILIES[family], dtype), recipe, host=host())


def trained(
    recipe: PeftConfig | Sequence[PeftConfig],
    family: str = "llama",
    dtype: type[np.floating] = np.float32,
) -> PeftModel:
    peft = adapted(recipe, family, dtype)
    shake(peft)
    return peft


def adapters(peft: PeftModel) -> list[BottleneckAdapter]:
    return [m for _, m in peft.named_modules() if isinstance(m, BottleneckAdapter)]


# ---------- the formula ----------


def context(
    x: Tensor, *, causal: bool = True, rotary: tuple[Array, Array] | None = None
) -> Context:
    """Return the context of a whole text without padding."""
    return Context(causal=causal, roles=Roles(x.shape[:2]), rotary=rotary)


class Doubled(Module):
    """A layer, and an attention, with the derivative 2."""

    num_heads = num_kv_heads = head_dim = 1

    def __call__(self, x: Tensor, _: Context | None = None) -> Tensor:
        return x * 2.0


def by_hand(
    made: BottleneckAdapter, config: BottleneckAdapterConfig, x: Array, g: Array, keep: Array
) -> dict[str, Array]:
    """Return the reference's update u, its gradient of x, and the gradients of all weights.

    The reference drops nothing: `keep` (m,) goes into its way up.
    """
    weights = {name: p.data.astype(np.float64) for name, p in made.named_parameters()}
    plain = reference.Adapter(16, 8, config.activation, bias=config.bias, scaling=config.scale)
    plain.W_down = weights["adapter_down.weight"].T
    plain.W_up = keep[:, None] * weights["adapter_up.weight"].T
    if config.bias:
        plain.b_down, plain.b_up = weights["adapter_down.bias"], weights["adapter_up.bias"]
    seen, scale = x, weights.get("adapter_norm.weight")
    if scale is not None:
        seen = reference.layer_norm(x, scale, weights["adapter_norm.bias"])
    found = {"u": plain.update(seen), "x": plain.update_backward(g)}
    if scale is not None:
        backward = reference.layer_norm_backward(found["x"], x, scale)
        found["x"], found["adapter_norm.weight"], found["adapter_norm.bias"] = backward
    found["adapter_down.weight"] = plain.W_down_grad.T
    found["adapter_up.weight"] = (keep[:, None] * plain.W_up_grad).T
    if config.bias:
        found["adapter_down.bias"], found["adapter_up.bias"] = plain.b_down_grad, plain.b_up_grad
    return found


@dataclass(frozen=True)
class Case:
    """An adapter of width 16 and bottleneck 8 around Doubled, with random weights."""

    config: BottleneckAdapterConfig
    slot: str
    dtype: type[np.floating]

    def __str__(self) -> str:
        options = [name for name in ("bias", "layer_norm", "dropout") if getattr(self.config, name)]
        names = (self.config.placement, self.slot, self.config.activation, *options)
        return " ".join((*names, self.dtype.__name__))

    def layer(self) -> AttentionAdapter | LayerAdapter:
        init = Init(0, self.dtype)
        made = (AttentionAdapter if self.slot == "attn" else LayerAdapter)(
            Doubled(), self.config, 16, init
        )
        for _, parameter in made.named_parameters():
            parameter.data = init.normal(*parameter.shape, std=0.5)
        return made

    def check(self) -> None:
        made, draw, rate = self.layer(), np.random.default_rng(1), self.config.dropout
        shape = (1, 16) if rate else (2, 3, 16)  # one row of the mask for all
        x, g = (draw.normal(size=shape).astype(self.dtype) for _ in range(2))
        made.dropout.rng = np.random.default_rng(2)
        keep = (np.random.default_rng(2).random(8, dtype=np.float32) >= rate) / (1 - rate)
        tensor = Tensor(x, requires_grad=True)
        y = made(tensor, context(tensor))
        y.backward(g)
        inward = 1 if self.config.placement == "parallel" else 2  # d(what it sees)/dx
        expected = by_hand(made, self.config, inward * x.astype(np.float64), g, keep)
        self.close(y.data, 2 * x + expected.pop("u"))
        self.close(tensor.grad, 2 * g + inward * expected.pop("x"))
        for name, parameter in made.named_parameters():
            self.close(parameter.grad, expected.pop(name))
        assert not expected

    def close(self, actual: Array | None, expected: Array) -> None:
        assert actual is not None
        assert actual.dtype == self.dtype
        tolerance = 1e-5 if self.dtype is np.float32 else 1e-10
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


CASES = [
    Case(
        config_from_dict(
            BottleneckAdapterConfig,
            {
                "bottleneck_dim": 8,
                "placement": placement,
                "activation": activation,
                "bias": bias,
                "layer_norm": layer_norm,
                "dropout": dropout,
            },
        ),
        slot,
        dtype,
    )
    for (placement, slot), activation, bias, layer_norm, dropout, dtype in itertools.product(
        [("houlsby", "attn"), ("houlsby", "mlp"), ("pfeiffer", "mlp"), ("parallel", "mlp")],
        ["relu", "gelu", "silu", "tanh"],
        [False, True],
        [False, True],
        [0.0, 0.4],
        DTYPES,
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_adapter_and_its_gradients_are_the_formula(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", [*PLACEMENTS, "all there is"])
def test_the_gradients_of_a_block_are_its_differences(family: str, option: str) -> None:
    peft = trained(replace(OPTIONS[option], activation="tanh"), family, np.float64)
    model = peft.base_model
    rotary = model.angles(np.arange(5), np.dtype(np.float64)) if model.angles else None
    x = Tensor(np.random.default_rng(0).normal(size=(2, 5, 16)), requires_grad=True)
    first = block_of(model)
    parameters = [p for p in first.parameters() if p.requires_grad]
    assert len(parameters) >= 4

    def block(x: Tensor, *_: Tensor) -> Tensor:
        return first(x, context(x, causal=model.config.causal, rotary=rotary))

    assert check_gradients(block, [x, *parameters]) < 1e-6


# ---------- where it stands ----------


PLACES = {
    ("gpt2", "houlsby"): "transformer.h.{}.attn transformer.h.{}.mlp",
    ("gpt2", "parallel"): "transformer.h.{}.mlp",
    ("llama", "houlsby"): "model.layers.{}.self_attn model.layers.{}.mlp",
    ("llama", "pfeiffer"): "model.layers.{}.mlp",
    ("bert", "houlsby"): "bert.encoder.layer.{}.attention bert.encoder.layer.{}.mlp",
    ("bert", "pfeiffer"): "bert.encoder.layer.{}.mlp",
    ("gpt2", "after the sum"): "transformer.h.{}.attn_residual transformer.h.{}.mlp_residual",
    ("bert", "beside the sum"): "bert.encoder.layer.{}.mlp_residual",
}


@pytest.mark.parametrize(("family", "placement"), PLACES)
def test_each_placement_adapts_its_modules(family: str, placement: str) -> None:
    peft = adapted(OPTIONS[placement], family)
    layers = range(peft.config.num_hidden_layers)
    expected = [p.format(n) for n in layers for p in PLACES[family, placement].split()]
    assert [rewrite.seam.path for rewrite in peft.record.rewrites] == expected
    parallel = {m.parallel for m in adapters(peft)}
    assert parallel == {placement in ("parallel", "beside the sum")}


def test_with_norms_after_the_residual_the_adapter_comes_before_both() -> None:
    peft = trained(HOULSBY, "bert", np.float64)
    block = block_of(peft.base_model)
    attn, mlp = block.attn, block.mlp
    assert isinstance(attn, AttentionAdapter)
    assert isinstance(mlp, LayerAdapter)
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 16)))
    facts = context(x, causal=False)
    h = attn.base_layer(x, facts)
    middle = block.attn_norm(x + h + attn.update(h))
    h = mlp.base_layer(middle, facts)
    expected = block.mlp_norm(middle + h + mlp.update(h))
    np.testing.assert_allclose(block(x, facts).data, expected.data, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_an_adapter_may_read_the_hidden_states(placement: str, family: str) -> None:
    option = "beside the sum" if placement == "parallel" else "after the sum"
    peft = trained(OPTIONS[option], family, np.float64)
    block, base = block_of(peft.base_model), block_of(small_model(FAMILIES[family], np.float64))
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 16)))
    rotary = peft.base_model.angles
    facts = context(
        x,
        causal=peft.config.causal,
        rotary=rotary(np.arange(3), np.dtype(np.float64)) if rotary else None,
    )

    def joined(x: Tensor, h: Tensor, norm: Norm, adapter: object) -> Tensor:
        after = x + h if block.pre_norm else norm(x + h)
        if isinstance(adapter, ResidualAdapter):
            h = h + adapter.update(x if placement == "parallel" else after)
        return x + h if block.pre_norm else norm(x + h)

    h = base.attn(base.attn_norm(x) if block.pre_norm else x, facts)
    middle = joined(x, h, base.attn_norm, block.attn_residual)
    h = base.mlp(base.mlp_norm(middle) if block.pre_norm else middle, facts)
    expected = joined(middle, h, base.mlp_norm, block.mlp_residual)
    assert isinstance(block.mlp_residual, ResidualAdapter)
    np.testing.assert_allclose(block(x, facts).data, expected.data, rtol=1e-12, atol=1e-14)


def test_beside_a_layer_that_takes_the_hidden_states_both_are_the_same() -> None:
    one, other = (trained(OPTIONS[name], "bert") for name in ("parallel", "beside the sum"))
    pairs = zip(one.trainable_parameters(), other.trainable_parameters(), strict=True)
    for source, parameter in pairs:
        parameter.data = source.data
    np.testing.assert_allclose(logits(one), logits(other), rtol=1e-5, atol=1e-6)


def test_dropout_may_apply_to_the_output() -> None:
    config = replace(PFEIFFER, dropout=0.5, drops="output", scaling=3.0)
    made = Case(config, "mlp", np.float64).layer()
    x = Tensor(np.ones((1, 16)))
    whole = replace(config, dropout=0.0)
    expected = Case(whole, "mlp", np.float64).layer().update(x).data
    made.dropout.rng = np.random.default_rng(2)
    keep = (np.random.default_rng(2).random((1, 16), dtype=np.float32) >= 0.5) / 0.5
    np.testing.assert_allclose(made.update(x).data, keep * expected, rtol=1e-12)
    made.eval()
    np.testing.assert_array_equal(made.update(x).data, expected)


@pytest.mark.parametrize("layers", [1, [2, 0], [0, 0]])
def test_only_named_layers_are_adapted(layers: int | list[int]) -> None:
    peft = adapted(replace(HOULSBY, layers_to_transform=layers))
    numbers = {rewrite.seam.layer for rewrite in peft.record.rewrites}
    assert numbers == ({layers} if isinstance(layers, int) else set(layers))


def test_a_wrapped_attention_is_still_an_attention() -> None:
    attn = block_of(adapted([HOULSBY, HOULSBY]).base_model).attn
    assert isinstance(attn, AttentionAdapter)
    assert isinstance(attn.base_layer, AttentionAdapter)
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim) == (4, 2, 4)


# ---------- starts ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_adapted_model_starts_exactly_as_the_base(family: str, option: str) -> None:
    expected = logits(small_model(FAMILIES[family]))
    np.testing.assert_array_equal(logits(adapted(OPTIONS[option], family)), expected)


def wide(config: BottleneckAdapterConfig) -> LayerAdapter:
    return LayerAdapter(Doubled(), config, 1000, Init(0))


def test_identity_initialisation_has_a_random_down_and_a_zero_up_projection() -> None:
    made = wide(BottleneckAdapterConfig(bottleneck_dim=50, layer_norm=True))
    down, bound = made.adapter_down.weight.data, 1 / math.sqrt(1000)
    assert 0.99 * bound < np.abs(down).max() <= bound
    others = {n: p.data for n, p in made.named_parameters() if n != "adapter_down.weight"}
    ones = {name for name, array in others.items() if array.all()}
    assert ones == {"adapter_norm.weight"}
    np.testing.assert_array_equal(others.pop("adapter_norm.weight"), 1)
    assert not any(array.any() for array in others.values())


def test_near_identity_initialisation_is_truncated_normal() -> None:
    made = wide(BottleneckAdapterConfig(bottleneck_dim=50, init_weights="near_identity"))
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    for linear in (made.adapter_down, made.adapter_up):
        weight = linear.weight.data
        assert weight.dtype == np.float32
        assert 0.0199 < np.abs(weight).max() <= np.float32(0.02)
        assert abs(weight.mean()) < 2e-4
        assert abs(weight.std() - 0.01 * cut) < 1e-4
        assert linear.bias is not None
        assert not linear.bias.data.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_near_identity_initialisation_is_near_the_base(family: str) -> None:
    base = logits(small_model(FAMILIES[family]))
    near = logits(adapted(replace(HOULSBY, init_weights="near_identity"), family))
    assert 0 < np.abs(near - base).max() < 1e-3 * np.abs(base).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", ["identity", "near_identity"])
def test_weights_take_the_dtype_of_the_model(start: str, dtype: type[np.floating]) -> None:
    config = config_from_dict(BottleneckAdapterConfig, {"init_weights": start, "layer_norm": True})
    peft = adapted(config, dtype=dtype)
    assert {p.dtype for p in peft.trainable_parameters()} == {np.dtype(dtype)}
    assert logits(peft).dtype == dtype


def test_adapters_start_with_different_weights() -> None:
    down = [a.adapter_down.weight.data for a in adapters(adapted([HOULSBY, HOULSBY]))]
    assert len({array.tobytes() for array in down}) == len(down) == 12


# ---------- training ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_only_the_adapters_are_trained(family: str, option: str) -> None:
    peft = trained(OPTIONS[option], family)
    labels = np.array([0, 2]) if family == "bert" else IDS
    peft.loss(IDS, labels).backward()
    with_gradient = {name for name, p in peft.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in peft.named_parameters() if ".adapter_" in name}
    assert all(p.grad is not None and p.grad.any() for p in peft.trainable_parameters())


def test_a_zero_up_projection_still_learns() -> None:
    peft = adapted(PFEIFFER)
    peft.loss(IDS, IDS).backward()
    for adapter in adapters(peft):
        assert adapter.adapter_up.weight.grad is not None
        assert adapter.adapter_up.weight.grad.any()


def test_dropout_applies_to_the_bottleneck_in_training_only() -> None:
    made = LayerAdapter(
        Doubled(), replace(PFEIFFER, bottleneck_dim=3, dropout=0.5, activation="silu"), 6, Init(0)
    )
    made.adapter_up.weight.data = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    x = Tensor(np.ones((1, 400, 6)))
    facts = context(x)
    made.eval()
    quiet = made(x, facts).data[0]
    assert len(np.unique(quiet, axis=0)) == 1
    made.train()
    noisy = made(x, facts).data[0]
    assert len(np.unique(noisy.round(4), axis=0)) == 2**3
    np.testing.assert_allclose(noisy.mean(axis=0), quiet[0], atol=0.3)


def test_adapters_drop_different_elements_and_runs_the_same() -> None:
    outputs = []
    for _ in range(2):
        peft = trained(replace(HOULSBY, dropout=0.5))
        quiet = logits(peft)
        peft.train()
        outputs.append(logits(peft))
        masks = [np.asarray(a.dropout.keep((8, 4))).tobytes() for a in adapters(peft)]
        assert len(set(masks)) == len(masks) == 6
        assert np.abs(outputs[-1] - quiet).max() > 1e-3
    np.testing.assert_array_equal(outputs[0], outputs[1])


# ---------- counting ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_closed_form_matches_the_count(family: str, option: str) -> None:
    config = OPTIONS[option]
    real = adapted(config, family).get_nb_trainable_parameters()
    assert count_recipe(FAMILIES[family], config, host()) == real


@pytest.mark.parametrize(
    ("shape", "settings", "trainable"),
    [
        ("llama-7b", "placement=houlsby,bottleneck_dim=64,bias=false", 33_554_432),
        ("bert-base", "placement=pfeiffer,reduction_factor=16", 12 * (2 * 768 * 48 + 48 + 768)),
        ("bert-large", "placement=houlsby", 48 * (2 * 1024 * 64 + 64 + 1024)),
        ("gpt2", "placement=parallel,layer_norm=true,bottleneck_dim=1", 12 * (4 * 768 + 1 + 768)),
    ],
)
def test_named_shapes_have_their_counts(shape: str, settings: str, trainable: int) -> None:
    config = parse_method(f"adapter:{settings}", host())
    assert count_recipe(named_shape(shape), config, host())[0] == trainable


# ---------- saving ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_saved_adapter_loads_bit_for_bit(family: str, option: str, tmp_path: Path) -> None:
    peft = trained(OPTIONS[option], family)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small_model(FAMILIES[family]), tmp_path, host=host())
    assert again.recipe == (OPTIONS[option],)
    np.testing.assert_array_equal(logits(again), logits(peft))


def test_names_on_disk_are_the_original_paths(tmp_path: Path) -> None:
    trained(replace(OPTIONS["all there is"], layers_to_transform=1)).save_pretrained(tmp_path)
    shapes = {n: a.shape for n, a in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {
        f"base_model.model.model.layers.1.{place}.{name}": shape
        for place in ("self_attn", "mlp")
        for name, shape in {
            "adapter_norm.weight": (16,),
            "adapter_norm.bias": (16,),
            "adapter_down.weight": (4, 16),
            "adapter_down.bias": (4,),
            "adapter_up.weight": (16, 4),
            "adapter_up.bias": (16,),
        }.items()
    }


# ---------- composing ----------

RECIPES: dict[str, list[PeftConfig]] = {
    "LoRA within": [LORA, HOULSBY],
    "LoRA within, applied later": [HOULSBY, LORA],
    "LoRA between": [PFEIFFER, LORA, PARALLEL],
    "twice": [HOULSBY, HOULSBY],
    "beside what came after": [PFEIFFER, PARALLEL],
    "after what stands beside": [PARALLEL, PFEIFFER],
    "all placements": [HOULSBY, PARALLEL, PFEIFFER, LORA],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_applied_counted_reloaded_and_removed(
    name: str, family: str, tmp_path: Path
) -> None:
    config, recipe = FAMILIES[family], RECIPES[name]
    base = logits(small_model(config))
    peft = trained(recipe, family)
    assert count_recipe(config, recipe, host()) == peft.get_nb_trainable_parameters()
    changed = logits(peft)
    assert np.abs(changed - base).max() > 1e-3
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), base)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small_model(config), tmp_path, host=host())
    np.testing.assert_array_equal(logits(again), changed)
    np.testing.assert_array_equal(logits(peft.unload()), base)


def test_the_order_of_lora_and_an_adapter_does_not_matter() -> None:
    outputs = []
    for recipe, lora in ((RECIPES["LoRA within"], 0), (RECIPES["LoRA within, applied later"], 1)):
        peft = adapted(recipe)
        draw = np.random.default_rng(0)
        for step in (lora, 1 - lora):
            for parameter in peft.record.named_parameters(step).values():
                parameter.data = draw.normal(0, 0.1, parameter.shape).astype(np.float32)
        outputs.append(logits(peft))
    np.testing.assert_array_equal(outputs[0], outputs[1])


def mlps(recipe: Sequence[PeftConfig]) -> tuple[LayerAdapter, LayerAdapter, Layer]:
    """Return the outer and the inner adapter of one seam, and the base's layer."""
    outer = block_of(trained(recipe, dtype=np.float64).base_model).mlp
    assert isinstance(outer, LayerAdapter)
    assert isinstance(outer.base_layer, LayerAdapter)
    return outer, outer.base_layer, outer.base_layer.base_layer


def test_stacked_adapters_are_applied_in_the_order_of_the_recipe() -> None:
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 16)))
    facts = context(x)
    outer, inner, base = mlps([PFEIFFER, PFEIFFER])
    h = base(x, facts) + inner.update(base(x, facts))
    np.testing.assert_allclose(outer(x, facts).data, (h + outer.update(h)).data, rtol=1e-12)
    outer, inner, base = mlps([PFEIFFER, PARALLEL])
    h = base(x, facts) + inner.update(base(x, facts))
    np.testing.assert_allclose(outer(x, facts).data, (h + outer.update(x)).data, rtol=1e-12)
    outer, inner, base = mlps([PARALLEL, PFEIFFER])
    h = base(x, facts) + inner.update(x)
    np.testing.assert_allclose(outer(x, facts).data, (h + outer.update(h)).data, rtol=1e-12)


def test_refused_merging_changes_nothing() -> None:
    peft = trained([LORA, PFEIFFER])
    before = Snapshot.of(peft)
    with pytest.raises(PeftError) as caught:
        peft.merge_and_unload()
    why = "adapter cannot be merged: a nonlinearity stands between its two layers"
    assert f"model.layers.2.mlp: {why}" in str(caught.value)
    before.assert_unchanged(peft)


def test_lora_inside_an_adapter_can_be_merged() -> None:
    peft = trained([LORA, HOULSBY], dtype=np.float64)
    expected = logits(peft)
    peft.merge_adapter(partial=True)
    assert not any(isinstance(m, LoraLinear) for _, m in peft.named_modules())
    assert len(adapters(peft)) == 6
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-10, atol=1e-12)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["houlsby", "after the sum"])
def test_rows_may_have_different_adapters(option: str, family: str) -> None:
    peft = adapted(OPTIONS[option], family, np.float64)
    other = replace(PARALLEL, reads=OPTIONS[option].reads)
    peft.add_adapter("beside", [LORA, other], seed=1)
    peft.set_adapter(["default", "beside"])
    shake(peft)
    names = ["beside", "default"]
    alone = []
    for name in names:
        peft.set_adapter(name)
        alone.append(logits(peft))
    with no_grad():
        mixed = peft(IDS, adapter_names=names).data
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    for row in range(2):
        np.testing.assert_allclose(mixed[row], alone[row][row], rtol=1e-9, atol=1e-12)


# ---------- shapes of inputs ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", PLACEMENTS)
def test_a_row_alone_equals_the_row_in_a_batch(family: str, option: str) -> None:
    peft = trained(OPTIONS[option], family, np.float64)
    with no_grad():
        rows = [peft(IDS[n : n + 1]).data for n in range(2)]
        single = peft(IDS[:1, :1]).data
    np.testing.assert_allclose(np.concatenate(rows), logits(peft), rtol=1e-9, atol=1e-12)
    assert single.shape == ((1, 3) if family == "bert" else (1, 1, 50))
    if family != "bert":
        np.testing.assert_allclose(single[0], rows[0][0, :1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("option", PLACEMENTS)
def test_generation_is_the_same_with_and_without_a_cache(family: str, option: str) -> None:
    peft = trained(OPTIONS[option], family, np.float64)
    tokens = IDS
    for _ in range(8):
        with no_grad():
            following = peft(tokens).data[:, -1].argmax(axis=-1)
        tokens = np.concatenate([tokens, following[:, None]], axis=1)
    np.testing.assert_array_equal(peft.generate(IDS, max_new_tokens=8), tokens)


# ---------- what cannot be ----------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck_dim": 0}, "bottleneck_dim=0 must be at least 1"),
        ({"bottleneck_dim": -3}, "bottleneck_dim=-3 must be at least 1"),
        (
            {"bottleneck_dim": 8, "reduction_factor": 16},
            "bottleneck_dim=8 and reduction_factor=16 both set the inner width: give one of them",
        ),
        ({"reduction_factor": 0}, "reduction_factor=0 must be at least 1"),
        ({"reduction_factor": 0.5}, "reduction_factor=0.5 must be at least 1"),
        ({"reduction_factor": math.nan}, "reduction_factor: expected a finite number, got nan"),
        ({"reduction_factor": math.inf}, "reduction_factor: expected a finite number, got inf"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be at least 0 and below 1"),
        ({"scaling": 0.0}, "scaling=0.0 must be a number other than 0"),
        ({"scaling": math.nan}, "scaling: expected a finite number, got nan"),
        ({"layers_to_transform": []}, "layers_to_transform is empty"),
        (
            {"placement": "pfeifer"},
            (
                "placement: expected one of houlsby, pfeiffer, parallel, got 'pfeifer'; "
                "did you mean 'pfeiffer'?"
            ),
        ),
        (
            {"activation": "rely"},
            (
                "activation: expected one of relu, gelu, gelu_tanh, silu, tanh, got 'rely'; "
                "did you mean 'relu' or 'gelu'?"
            ),
        ),
        (
            {"init_weights": "identical"},
            (
                "init_weights: expected one of identity, near_identity, got 'identical'; "
                "did you mean 'identity'"
            ),
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BottleneckAdapterConfig(**settings)
    assert message in str(caught.value)


def test_one_error_lists_every_invalid_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        BottleneckAdapterConfig(bottleneck_dim=0, reduction_factor=0.5, dropout=2, scaling=0)
    assert str(caught.value).count("\n  - ") == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(PFEIFFER, layers_to_transform=[0, 3, -1]),
            (
                "step 1: layers_to_transform: the model has no layer 3 (it has 3, from 0)\n"
                "  - step 1: layers_to_transform: the model has no layer -1 (it has 3, from 0)"
            ),
        ),
        (
            BottleneckAdapterConfig(reduction_factor=17),
            "step 1: reduction_factor=17 must be at most the hidden size 16",
        ),
        (
            replace(HOULSBY, layers_to_transform=1, modules_to_save=["mlp", "layers.0"]),
            (
                "step 1: modules_to_save: model.layers.1.mlp gets an adapter: "
                "name the layers below it instead"
            ),
        ),
        (
            replace(PFEIFFER, layers_to_transform=1, modules_to_save=["layers.1"]),
            "step 1: modules_to_save: model.layers.1.mlp gets an adapter",
        ),
    ],
)
def test_invalid_recipes_are_refused_before_anything_changes(
    config: BottleneckAdapterConfig, message: str
) -> None:
    model = small_model()
    before = Snapshot.of(model)
    with pytest.raises(PeftError) as caught:
        get_peft_model(model, [LORA, config], host=host())
    assert message in str(caught.value)
    before.assert_unchanged(model)
    with pytest.raises(PeftError) as counted:
        count_recipe(LLAMA, [LORA, config], host())
    assert str(counted.value) == str(caught.value)


def test_only_adapted_modules_cannot_be_saved_whole() -> None:
    config = replace(
        PFEIFFER, layers_to_transform=1, modules_to_save=["self_attn", "layers.0", "down_proj"]
    )
    real = trained(config).get_nb_trainable_parameters()
    assert count_recipe(LLAMA, config, host()) == real
    assert real[0] > 3 * 16 * 24


def test_a_model_other_than_a_transformer_is_not_adapted() -> None:
    with pytest.raises(PeftError, match="step 0, adapter, adapted nothing"):
        apply_recipe(Doubled(), PFEIFFER, host())


def test_it_is_found_by_its_entry_point_and_set_from_the_command_line() -> None:
    plugins = Host.installed()
    assert methods_of(plugins)["adapter"] is BottleneckAdapterConfig
    text = "adapter:placement=parallel,reduction_factor=16,layers_to_transform=0+2,bias=false"
    assert parse_method(text, plugins) == BottleneckAdapterConfig(
        placement="parallel", reduction_factor=16, layers_to_transform=[0, 2], bias=False
    )
    assert parse_method("adapter", plugins) == BottleneckAdapterConfig()


@pytest.mark.parametrize(
    ("config", "scale", "bottleneck"),
    [
        (BottleneckAdapterConfig(), 1.0, 64),
        (BottleneckAdapterConfig(placement="houlsby", bottleneck_dim=3), 1.0, 3),
        (BottleneckAdapterConfig(placement="parallel", reduction_factor=2), 4.0, 384),
        (BottleneckAdapterConfig(placement="parallel", scaling=1.0, reduction_factor=7), 1.0, 109),
        (BottleneckAdapterConfig(scaling=-2, reduction_factor=768), -2.0, 1),
        (BottleneckAdapterConfig(reduction_factor=1.5), 1.0, 512),
    ],
)
def test_the_factor_and_the_width_follow_from_the_settings(
    config: BottleneckAdapterConfig, scale: float, bottleneck: int
) -> None:
    assert (config.scale, config.bottleneck(768)) == (scale, bottleneck)
