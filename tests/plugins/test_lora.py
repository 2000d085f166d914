import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import tinygrad_peft_lora.plugin
from tests.plugins.doubled import Doubled
from tinygrad_peft.arrays import Array, BoolArray
from tinygrad_peft.errors import PeftError, ShapeError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import (
    Affine,
    Init,
    Linear,
    Module,
    Parameter,
    RMSNorm,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.peft import Host, PeftModel, Site, get_peft_model, hookspecs
from tinygrad_peft.tensor import Tensor, apply_fused, no_grad
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig, LoraLinear, lora_linear

BERT = TransformerConfig(
    model_type="bert",
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
    norm_position="post",
    causal=False,
    head="classification",
    num_labels=2,
    pooler=True,
)
GPT2 = TransformerConfig(
    model_type="gpt2",
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
    packed_qkv=True,
)
IDS = np.array([[1, 2, 3], [4, 5, 6]])


def lora_host() -> Host:
    host = Host()
    host.register(tinygrad_peft_lora.plugin, "lora")
    return host


def present(array: Array | None) -> Array:
    assert array is not None
    return array


def apply_lora(model: TransformerConfig, config: LoraConfig) -> PeftModel:
    return get_peft_model(Transformer(model), config, host=lora_host())


def layer(
    base: Affine | None = None, config: LoraConfig | None = None, path: str = "layer"
) -> LoraLinear:
    """Return LoRA of rank 2 on a layer of 5 to 4, in float64, with a random B."""
    init = Init(3, np.float64)
    base = Linear(5, 4, init=init) if base is None else base
    made = LoraLinear(base, config or LoraConfig(r=2, lora_alpha=3), path, init)
    made.lora_B.weight.data = init.normal(*made.lora_B.weight.shape, std=0.5)
    return made


# ---------- the fused op ----------


@dataclass
class Case:
    """The op's inputs, the trained ones among them, and its formula written another way."""

    bias: bool
    dropped: bool
    trained: tuple[bool, ...]
    shape: tuple[int, ...] = (2, 3)
    scaling: ClassVar[float] = 1.7
    rate: ClassVar[float] = 0.4

    def inputs(self) -> list[Tensor | None]:
        rng = np.random.default_rng(0)
        shapes = [(*self.shape, 5), (4, 5), (4,) if self.bias else None, (2, 5), (4, 2)]
        return [
            None if s is None else Tensor(rng.normal(size=s), requires_grad=t)
            for s, t in zip(shapes, self.trained, strict=True)
        ]

    @property
    def keep(self) -> BoolArray | None:
        kept: BoolArray = np.random.default_rng(1).random((*self.shape, 5)) >= self.rate
        return kept if self.dropped else None

    def op(self, *inputs: Tensor | None) -> Tensor:
        return apply_fused(
            lora_linear, *inputs, scaling=self.scaling, keep=self.keep, rate=self.rate
        )

    def formula(self, x: Array, w: Array, bias: Array | None, a: Array, b: Array) -> Array:
        """Compute each row, with ΔW built as a matrix."""
        keep = np.ones_like(x) if self.keep is None else self.keep / (1 - self.rate)
        delta = self.scaling * sum(np.outer(b[:, k], a[k]) for k in range(len(a)))
        y = np.empty((*x.shape[:-1], len(w)))
        for place in np.ndindex(x.shape[:-1]):
            y[place] = w @ x[place] + delta @ (keep[place] * x[place])
        return y if bias is None else y + bias


EVERY = (True,) * 5
CASES = {
    "all trained": Case(bias=True, dropped=True, trained=EVERY),
    "no bias": Case(bias=False, dropped=True, trained=EVERY),
    "no dropout": Case(bias=True, dropped=False, trained=EVERY),
    "as LoRA trains": Case(bias=True, dropped=True, trained=(True, False, False, True, True)),
    "first layer": Case(bias=True, dropped=False, trained=(False, False, False, True, True)),
    "only A": Case(bias=True, dropped=True, trained=(False, False, False, True, False)),
    "only B": Case(bias=True, dropped=True, trained=(False, False, False, False, True)),
    "only x": Case(bias=True, dropped=True, trained=(True, False, False, False, False)),
    "bias as well": Case(bias=True, dropped=False, trained=(True, False, True, True, True)),
    "one vector": Case(bias=True, dropped=True, trained=EVERY, shape=()),
    "four axes": Case(bias=True, dropped=True, trained=EVERY, shape=(2, 1, 3)),
    "empty": Case(bias=True, dropped=True, trained=EVERY, shape=(0, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fused_op_is_its_formula(name: str) -> None:
    inputs = CASES[name].inputs()
    x, w, bias, a, b = (None if t is None else t.data for t in inputs)
    expected = CASES[name].formula(present(x), present(w), bias, present(a), present(b))
    np.testing.assert_allclose(CASES[name].op(*inputs).data, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_fused_ops_gradients_are_its_differences(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs()

    def function(*given: Tensor) -> Tensor:
        rest = iter(given)
        return case.op(*[None if t is None else next(rest) for t in inputs])

    assert check_gradients(function, [t for t in inputs if t is not None]) < 1e-6


def test_gradients_match_the_paper() -> None:
    case = CASES["as LoRA trains"]
    x, w, bias, a, b = case.inputs()
    assert x is not None
    assert w is not None
    assert a is not None
    assert b is not None
    g = np.random.default_rng(2).normal(size=(2, 3, 4))
    case.op(x, w, bias, a, b).backward(g)
    assert case.keep is not None
    dropped = (x.data * case.keep / (1 - case.rate)).reshape(-1, 5)
    s, g2 = case.scaling, g.reshape(-1, 4)
    np.testing.assert_allclose(present(b.grad), s * g2.T @ (dropped @ a.data.T))
    np.testing.assert_allclose(present(a.grad), s * (g2 @ b.data).T @ dropped)
    through = (s * g2 @ b.data @ a.data).reshape(x.shape) * case.keep / (1 - case.rate)
    np.testing.assert_allclose(present(x.grad), g @ w.data + through)
    assert w.grad is None


def test_the_fused_op_leaves_its_inputs_unchanged() -> None:
    case = CASES["all trained"]
    inputs = [t for t in case.inputs() if t is not None]
    before = [t.data.copy() for t in inputs]
    output = case.op(*inputs)
    g = np.ones(output.shape)
    output.backward(g)
    for tensor, value in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(tensor.data, value)
    np.testing.assert_array_equal(g, 1.0)


def test_arrays_need_not_be_contiguous() -> None:
    case = CASES["no dropout"]
    inputs = [t for t in case.inputs() if t is not None]
    x, w, bias, a, b = inputs
    straight = case.op(x, w, bias, a, b).data
    turned = [Tensor(np.asfortranarray(t.data)) for t in inputs]
    np.testing.assert_allclose(case.op(*turned).data, straight, rtol=1e-12)


# ---------- what the op keeps and computes ----------


def closed_over(needs: tuple[bool, ...], x: Array, *weights: Array) -> list[Array]:
    """Return the arrays that the pullback keeps."""
    w, bias, a, b = weights
    _, pullback = lora_linear(needs, x, w, bias, a, b, scaling=1.0)
    cells = [cell.cell_contents for cell in pullback.__closure__ or ()]
    return [c for c in cells if isinstance(c, np.ndarray)]


def test_nothing_is_kept_for_the_gradient_of_a_frozen_weight() -> None:
    x, *weights = (t.data for t in CASES["no dropout"].inputs() if t is not None)
    only_b = closed_over((False, False, False, False, True), x, *weights)
    assert not any(np.shares_memory(kept, x) for kept in only_b)
    with_a = closed_over((True, False, False, True, True), x, *weights)
    assert any(np.shares_memory(kept, x) for kept in with_a)


def test_gradients_of_base_weights_are_not_computed() -> None:
    x, w, bias, a, b = (t.data for t in CASES["no dropout"].inputs() if t is not None)
    y, pullback = lora_linear((True, False, False, True, True), x, w, bias, a, b, scaling=1.0)
    given = [gradient is not None for gradient in pullback(np.ones_like(y))]
    assert given == [True, False, False, True, True]


def test_a_training_step_leaves_the_base_without_gradients() -> None:
    peft = apply_lora(BERT, LoraConfig(r=2, target_modules="all-linear"))
    for parameter in peft.trainable_parameters():
        parameter.data = parameter.data + 0.1
    peft.loss(IDS, np.array([0, 1])).backward()
    with_gradient = {name for name, p in peft.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in peft.named_parameters() if ".lora_" in n}
    assert len(with_gradient) == 2 * (2 * 6 + 1)


# ---------- the layer ----------


def test_a_layer_is_its_formula() -> None:
    made = layer()
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    assert isinstance(made.base_layer, Linear)
    assert made.base_layer.bias is not None
    w, bias = made.base_layer.weight.data, made.base_layer.bias.data
    a, b = made.lora_A.weight.data, made.lora_B.weight.data
    expected = x @ w.T + bias + 3 / 2 * (x @ a.T @ b.T)
    np.testing.assert_allclose(made(Tensor(x)).data, expected, rtol=1e-12)
    np.testing.assert_allclose(made.delta(), 3 / 2 * b @ a, rtol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_and_the_general_path_agree(training: bool) -> None:
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=0.4)
    linear = Linear(5, 4, init=Init(7, np.float64))
    half = Linear.of(Parameter(linear.weight.data / 2), Parameter(np.zeros(4)))
    fused, plain = layer(linear, config), layer(Doubled(half), config)
    x = np.random.default_rng(0).normal(size=(3, 5))
    results = []
    for made in (fused, plain):
        made.train(mode=training)
        made.dropout.rng = np.random.default_rng(11)
        tensor = Tensor(x, requires_grad=True)
        out = made(tensor)
        out.backward(np.ones((3, 4)))
        gradients = (tensor.grad, made.lora_A.weight.grad, made.lora_B.weight.grad)
        results.append((out.data, *gradients))
    for left, right in zip(*results, strict=True):
        assert left is not None
        assert right is not None
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-14)


def test_lora_stacks_on_lora() -> None:
    inner = layer()
    outer = layer(inner)
    x = Tensor(np.random.default_rng(0).normal(size=(3, 5)))
    np.testing.assert_allclose(outer(x).data, inner(x).data + x.data @ outer.delta().T, rtol=1e-12)


def test_dropout_applies_to_the_low_rank_path_in_training_only() -> None:
    made = layer(config=LoraConfig(r=2, lora_alpha=3, lora_dropout=0.5))
    x = Tensor(np.ones((400, 5)))
    base = made.base_layer(x).data
    made.eval()
    quiet = made(x).data - base
    np.testing.assert_allclose(quiet, x.data @ made.delta().T, rtol=1e-9)
    made.train()
    noisy = made(x).data - base
    assert len(np.unique(noisy.round(9), axis=0)) == 2**5
    np.testing.assert_allclose(noisy.mean(axis=0), quiet[0], atol=0.15)
    made.lora_B.weight.data = np.zeros((4, 2))
    np.testing.assert_array_equal(made(x).data, base)


def test_layers_drop_different_elements() -> None:
    peft = apply_lora(BERT, LoraConfig(lora_dropout=0.5, target_modules=["query", "value"]))
    peft.train()
    layers = [m for _, m in peft.named_modules() if isinstance(m, LoraLinear)]
    masks = [np.asarray(layer.dropout.keep((4, 8))) for layer in layers]
    assert len(masks) == 4
    for i, mask in enumerate(masks):
        assert not any(np.array_equal(mask, other) for other in masks[:i])


def test_one_seed_drops_the_same_elements() -> None:
    outputs = []
    for _ in range(2):
        peft = apply_lora(BERT, LoraConfig(lora_dropout=0.5, init_lora_weights=False))
        peft.train()
        outputs.append(peft(IDS).data)
    np.testing.assert_array_equal(outputs[0], outputs[1])


# ---------- starts ----------


def test_a_starts_kaiming_uniform_and_b_at_zero() -> None:
    base = Linear(400, 300)
    made = LoraLinear(base, LoraConfig(r=50), "layer", Init(0))
    a, bound = made.lora_A.weight.data, 1 / math.sqrt(400)
    assert a.shape == (50, 400)
    assert np.abs(a).max() <= bound
    assert np.abs(a).max() > 0.99 * bound
    assert abs(a.std() - bound / math.sqrt(3)) < 0.01 * bound
    assert not made.lora_B.weight.data.any()


def test_gaussian_initialisation_has_a_deviation_of_one_over_r() -> None:
    made = LoraLinear(
        Linear(4000, 3), LoraConfig(r=20, init_lora_weights="gaussian"), "layer", Init(0)
    )
    a = made.lora_A.weight.data
    assert abs(a.std() - 1 / 20) < 0.02 / 20
    assert abs(a).max() > 3 / 20
    assert not made.lora_B.weight.data.any()


def test_without_initialisation_both_are_kaiming_uniform() -> None:
    made = LoraLinear(Linear(30, 40), LoraConfig(r=16, init_lora_weights=False), "layer", Init(0))
    b = made.lora_B.weight.data
    assert 0.9 / math.sqrt(16) < np.abs(b).max() <= 1 / math.sqrt(16)


def test_weights_have_the_dtype_of_the_model() -> None:
    for dtype in (np.float32, np.float64):
        peft = get_peft_model(
            Transformer(BERT, Init(0, dtype)),
            LoraConfig(init_lora_weights="gaussian"),
            host=lora_host(),
        )
        assert {p.dtype for p in peft.trainable_parameters()} == {np.dtype(dtype)}


# ---------- ranks and scaling ----------


@pytest.mark.parametrize(
    ("path", "rank", "scaling"),
    [
        ("model.layers.0.q_proj", 2, 6 / 2),
        ("model.layers.1.q_proj", 4, 6 / 4),
        ("model.layers.1.v_proj", 8, 1 / 8),
        ("v_proj", 8, 1 / 8),
        ("model.layers.1.xv_proj", 5, 2 / 5),
        ("model.layers.1.v_proj.inner", 16, 6 / 16),
        ("model.layers.10.o_proj", 16, 6 / 16),
    ],
)
def test_the_first_matching_pattern_sets_rank_and_alpha(
    path: str, rank: int, scaling: float
) -> None:
    config = LoraConfig(
        r=16,
        lora_alpha=6,
        rank_pattern={r"layers\.0\.q_proj": 2, "q_proj": 4, "v_proj|k_proj": 8, ".*v_proj": 5},
        alpha_pattern={"v_proj": 1, ".*v_proj": 2},
    )
    assert (config.rank(path), config.scaling(path)) == (rank, scaling)


def test_the_order_of_patterns_matters() -> None:
    narrow_first = LoraConfig(rank_pattern={"q_proj": 2, ".*_proj": 4})
    wide_first = LoraConfig(rank_pattern={".*_proj": 4, "q_proj": 2})
    assert (narrow_first.rank("a.q_proj"), wide_first.rank("a.q_proj")) == (2, 4)


def test_rslora_scales_by_the_root_of_the_local_rank() -> None:
    config = LoraConfig(r=16, lora_alpha=6, use_rslora=True, rank_pattern={"v_proj": 4})
    assert config.scaling("q_proj") == 6 / 4
    assert config.scaling("v_proj") == 6 / 2


def test_every_pattern_without_a_target_is_named() -> None:
    config = LoraConfig(rank_pattern={"query": 2, "key": 3}, alpha_pattern={"key": 1, "out": 1.0})
    with pytest.raises(PeftError) as caught:
        apply_lora(BERT, config)
    assert "step 0: the pattern 'key' matches none of the targets" in str(caught.value)
    assert "step 0: the pattern 'out' matches none of the targets" in str(caught.value)
    assert "'query'" not in str(caught.value)


# ---------- where it goes ----------


def test_a_fused_projection_gets_one_a_and_one_b() -> None:
    peft = apply_lora(GPT2, LoraConfig(r=2))
    shapes = {name: p.shape for name, p in peft.record.named_parameters(0).items()}
    assert shapes == {
        "transformer.h.0.attn.c_attn.lora_A.weight": (2, 8),
        "transformer.h.0.attn.c_attn.lora_B.weight": (24, 2),
    }


def a_target(slot: str, module: Module) -> Site:
    return Site(slot, slot, module, None, is_target=True, init=Init(), model=module)


def test_a_norm_is_left_to_other_methods() -> None:
    site = a_target("norm", RMSNorm(4))
    assert tinygrad_peft_lora.plugin.adapt_module(LoraConfig(), site) is None


def test_configs_and_modules_of_other_methods_are_left_to_them() -> None:
    site = a_target("q", Linear(2, 2))
    assert lora_host().one(hookspecs.adapt_module, IA3Config(), site) is None
    assert lora_host().one(hookspecs.merge_module, Linear(2, 2)) is None


# ---------- biases ----------


def trained(config: LoraConfig) -> set[str]:
    peft = apply_lora(BERT, config)
    names = {n for n, p in peft.record.named_parameters(0).items() if p.requires_grad}
    return {name.removeprefix("bert.") for name in names if ".lora_" not in name}


ALL_BIASES = {
    "pooler.dense.bias",
    "classifier.bias",
    "embeddings.LayerNorm.bias",
    *(
        f"encoder.layer.{n}.{place}.bias"
        for n in (0, 1)
        for place in (
            *("attention.self.query.base_layer", "attention.self.key", "attention.self.value"),
            *("attention.output.dense", "attention.output.LayerNorm"),
            *("intermediate.dense", "output.dense", "output.LayerNorm"),
        )
    ),
}


def test_the_bias_setting_selects_the_trained_biases() -> None:
    query = LoraConfig(r=2, target_modules=["query"])
    assert trained(query) == set()
    only = LoraConfig(r=2, target_modules=["query"], bias="lora_only")
    assert trained(only) == {
        f"encoder.layer.{n}.attention.self.query.base_layer.bias" for n in (0, 1)
    }
    every = LoraConfig(r=2, target_modules=["query"], bias="all")
    assert trained(every) == ALL_BIASES


def test_the_bases_own_biases_are_never_changed() -> None:
    model = Transformer(BERT)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    peft = get_peft_model(model, LoraConfig(bias="all"), host=lora_host())
    for parameter in peft.trainable_parameters():
        parameter.data += 1.0
    peft.unload()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_trained_biases_need_a_recipe_of_one_step() -> None:
    model = Transformer(BERT)
    recipe = [LoraConfig(), LoraConfig(bias="lora_only")]
    with pytest.raises(PeftError, match="step 1: bias other than 'none' needs a recipe of one"):
        get_peft_model(model, recipe, host=lora_host())


def test_a_model_without_biases_has_none_to_train() -> None:
    config = LoraConfig(r=2, bias="lora_only", target_modules=["q_proj"])
    bare = TransformerConfig(
        model_type="llama",
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        norm="rms_norm",
        positions="rotary",
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
    )
    assert len(apply_lora(bare, config).record.named_parameters(0)) == 2


# ---------- merging ----------


def test_a_merged_layer_is_plain_and_shares_nothing_with_the_adapter() -> None:
    made = layer()
    merged = made.merge()
    assert isinstance(merged, Linear)
    assert isinstance(made.base_layer, Linear)
    np.testing.assert_allclose(
        merged.weight.data, made.base_layer.weight.data + made.delta(), rtol=1e-12
    )
    own = [p.data for p in made.parameters()]
    for parameter in merged.parameters():
        assert not any(np.shares_memory(parameter.data, array) for array in own)


def test_merging_ignores_dropout() -> None:
    made = layer(config=LoraConfig(r=2, lora_alpha=3, lora_dropout=0.9))
    made.train()
    merged = made.merge()
    assert merged is not None
    made.eval()
    x = Tensor(np.random.default_rng(0).normal(size=(3, 5)))
    with no_grad():
        np.testing.assert_allclose(merged(x).data, made(x).data, rtol=1e-12)


def test_only_a_plain_base_is_merged() -> None:
    assert layer(Doubled(Linear(5, 4))).merge() is None


def test_an_input_of_another_width_is_an_error() -> None:
    layer = LoraLinear(Linear(4, 3), LoraConfig(r=2), "q", Init())
    with pytest.raises(ShapeError, match=r"lora_linear: x \(2, 5\) for a weight \(3, 4\)"):
        layer(Tensor(np.zeros((2, 5))))


# ---------- a bias of B ----------


def with_shift(base: Affine | None = None) -> LoraLinear:
    made = layer(base, LoraConfig(r=2, lora_alpha=3, lora_bias=True))
    assert made.lora_B.bias is not None
    made.lora_B.bias.data = np.array([1.0, -2.0, 3.0, 0.5])
    return made


@pytest.mark.parametrize("plain", [True, False])
def test_a_bias_of_b_is_scaled_like_b(plain: bool) -> None:
    base = Linear(5, 4, init=Init(3, np.float64))
    made = with_shift(base if plain else Doubled(base))
    x = Tensor(np.random.default_rng(0).normal(size=(3, 5)))
    shift = present(made.lora_B.bias.data if made.lora_B.bias is not None else None)
    expected = made.base_layer(x).data + x.data @ made.delta().T + 3 / 2 * shift
    np.testing.assert_allclose(made(x).data, expected, rtol=1e-12)


def test_the_gradient_of_a_bias_of_b_is_its_difference() -> None:
    made = with_shift()
    x = Tensor(np.random.default_rng(0).normal(size=(3, 5)), requires_grad=True)

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return made(x)

    assert check_gradients(function, [x, *made.parameters()]) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_of_b_is_merged_into_an_old_or_a_new_bias(bias: bool) -> None:
    base = Linear(5, 4, bias=bias, init=Init(3, np.float64))
    made = with_shift(base)
    merged = made.merge()
    assert isinstance(merged, Linear)
    x = Tensor(np.random.default_rng(0).normal(size=(3, 5)))
    np.testing.assert_allclose(merged(x).data, made(x).data, rtol=1e-12)
    assert (base.bias is not None) == bias


def test_a_bias_of_b_starts_at_zero_unless_b_is_kaiming_uniform() -> None:
    for start in (True, False):
        config = LoraConfig(r=4, lora_bias=True, init_lora_weights=start)
        shift = LoraLinear(Linear(5, 40), config, "layer", Init()).lora_B.bias
        assert shift is not None
        assert bool(shift.data.any()) != start
        assert np.abs(shift.data).max() <= 1 / 2
