import copy
import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

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
    plugin,
    shake,
    small,
)
from tests.plugins.four_bit import adapted, host, packed_paths
from tinygrad_peft import reference
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError, TargetError
from tinygrad_peft.models import save_model
from tinygrad_peft.nn import Init, Linear, Module, Transformer, TransformerConfig
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    PeftModel,
    Site,
    capture_seams,
    config_from_dict,
    config_to_dict,
    count_recipe,
    get_peft_model,
    parse_method,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig, LoraLinear
from tinygrad_peft_qlora import (
    QLoraConfig,
    QuantizeConfig,
    QuantizedLinear,
    dequantize,
    quantize,
)

KINDS = {
    "nf4": QuantizeConfig(),
    "double": QuantizeConfig(double_quant=True, block_size=32),
    "int4": QuantizeConfig(quant_type="int4", block_size=128),
}


def rounded(
    settings: QuantizeConfig,
    config: TransformerConfig = LLAMA,
    dtype: type[np.floating] = np.float32,
) -> Transformer:
    """Return the model with the targets' weights rounded to their 4-bit values."""
    model = small(config, dtype)
    for seam in capture_seams(model):
        if isinstance(seam.module, Linear) and not seam.is_head:
            packed = quantize(
                seam.module.weight.data,
                quant_type=settings.quant_type,
                block_size=settings.block_size,
                double_quant=settings.double_quant,
            )
            seam.module.weight.data = dequantize(packed)
    return model


# ---------- the settings ----------


def test_qlora_stands_for_quantising_and_then_lora() -> None:
    config = QLoraConfig(
        r=4, lora_alpha=3, target_modules=["q_proj"], quant_type="nf4", double_quant=True
    )
    assert config.steps() == (
        QuantizeConfig(double_quant=True),
        LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj"]),
    )


def test_the_command_line_has_both_methods() -> None:
    plugins = host()
    text = "qlora:r=4,quant_type=int4,block_size=32,target_modules=q_proj+v_proj"
    assert parse_method(text, plugins) == QLoraConfig(
        r=4, quant_type="int4", block_size=32, target_modules=("q_proj", "v_proj")
    )
    assert parse_method("quantize:double_quant=true", plugins) == QuantizeConfig(double_quant=True)
    assert parse_method("quantize:target_modules=all-linear", plugins) == QuantizeConfig()


@pytest.mark.parametrize("config", [*KINDS.values(), QLoraConfig(r=2, double_quant=True)])
def test_settings_go_through_json(config: PeftConfig) -> None:
    assert config_from_dict(type(config), config_to_dict(config)) == config


@pytest.mark.parametrize("kind", [QuantizeConfig, QLoraConfig])
def test_one_error_lists_every_invalid_setting(
    kind: type[QuantizeConfig] | type[QLoraConfig],
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(quant_type="fp4", block_size=16)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"invalid {kind.__name__}:\n"
        "  - quant_type: expected one of nf4, int4, got 'fp4'; did you mean 'nf4'?\n"
        "  - block_size=16 must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096"
    )
    with pytest.raises(ConfigError, match="double_quant=True is for quant_type='nf4'"):
        kind(quant_type="int4", double_quant=True)


# ---------- applied ----------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_4_bit_base_computes_with_the_rounded_weights(
    family: str, kind: str, dtype: type[np.floating]
) -> None:
    peft = adapted(KINDS[kind], FAMILIES[family], dtype)
    found = logits(peft)
    assert found.dtype == dtype
    expected = logits(rounded(KINDS[kind], FAMILIES[family], dtype))
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_quantised_and_keeps_its_bias(family: str) -> None:
    model = small(FAMILIES[family])
    layers = {
        s.path: s.module
        for s in capture_seams(model)
        if isinstance(s.module, Linear) and not s.is_head
    }
    get_peft_model(model, QuantizeConfig(), host=host())
    assert packed_paths(model) == set(layers)
    for seam in capture_seams(model):
        if isinstance(seam.module, QuantizedLinear):
            assert seam.module.bias is layers[seam.path].bias


def test_targets_and_exclusions_select_the_quantised_layers() -> None:
    config = QuantizeConfig(target_modules=["up_proj", "down_proj"], exclude_modules=["up_proj"])
    peft = adapted(config)
    assert packed_paths(peft.base_model) == {
        f"model.layers.{i}.mlp.down_proj" for i in range(LLAMA.num_hidden_layers)
    }


def test_two_equal_calls_give_equal_bits() -> None:
    recipe = [QLoraConfig(r=2, double_quant=True)]
    first, second = adapted(recipe), adapted(recipe)
    for peft in (first, second):
        shake(peft)
    np.testing.assert_array_equal(logits(first), logits(second))


def test_only_lora_is_trained_and_the_4_bit_base_is_unchanged() -> None:
    peft = adapted(QLoraConfig(r=2))
    before = [m.weight.codes.copy() for m in quantized(peft)]
    shake(peft)
    peft.loss(IDS, labels=IDS).backward()
    with_gradient = {name for name, p in peft.named_parameters() if p.grad is not None}
    trained = {name for name, p in peft.named_parameters() if p.requires_grad}
    assert with_gradient == trained
    assert all(".lora_" in name for name in trained)
    for layer, codes in zip(quantized(peft), before, strict=True):
        np.testing.assert_array_equal(layer.weight.codes, codes)


def quantized(peft: PeftModel) -> list[QuantizedLinear]:
    return [m for _, m in peft.named_modules() if isinstance(m, QuantizedLinear)]


def test_qlora_is_lora_on_the_rounded_base() -> None:
    config = QLoraConfig(r=3, target_modules=["q_proj", "down_proj"])
    quantize_step, lora_step = config.steps()
    assert isinstance(quantize_step, QuantizeConfig)
    peft = adapted(config, dtype=np.float64)
    shake(peft)
    plain = get_peft_model(rounded(quantize_step, dtype=np.float64), lora_step, host=host())
    shake(plain)
    ours, theirs = peft.trainable_parameters(), plain.trainable_parameters()
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        theirs_.data = ours_.data.copy()
    np.testing.assert_allclose(logits(peft), logits(plain), atol=1e-12)
    for model in (peft, plain):
        model.loss(IDS, labels=IDS).backward()
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        assert ours_.dtype == np.float64
        assert ours_.grad is not None
        assert theirs_.grad is not None
        np.testing.assert_allclose(ours_.grad, theirs_.grad, atol=1e-12)


@pytest.mark.parametrize(("dtype", "off"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_lora_on_a_4_bit_layer_matches_the_reference(dtype: type[np.floating], off: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8)).astype(np.float32)
    plain = reference.QLoRALayer(*reference.quantize_to_4bit(weight), rank=2, alpha=3, rng=rng)
    plain.lora.B = rng.normal(size=(8, 2))
    base = QuantizedLinear(quantize(weight.astype(dtype), quant_type="int4"))
    layer = LoraLinear(base, LoraConfig(r=2, lora_alpha=3), "layer", Init(0, dtype))
    layer.lora_A.weight.data = plain.lora.A.astype(dtype)
    layer.lora_B.weight.data = plain.lora.B.astype(dtype)
    # The reference's scales are float64, a 4-bit weight's never are.
    plain.scale = float(np.asarray(base.weight.scales).item())
    x = Tensor(rng.normal(size=(2, 3, 8)).astype(dtype), requires_grad=True)
    y, g = layer(x), rng.normal(size=(2, 3, 8)).astype(dtype)
    np.testing.assert_allclose(y.data, plain.forward(x.data), rtol=off, atol=off)
    y.backward(g)
    gradients = (x.grad, layer.lora_A.weight.grad, layer.lora_B.weight.grad)
    expected = (plain.backward(g), plain.lora.A_grad, plain.lora.B_grad)
    for found, wanted in zip(gradients, expected, strict=True):
        assert found is not None
        np.testing.assert_allclose(found, wanted, rtol=off, atol=off * np.abs(wanted).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [QuantizeConfig(), QLoraConfig(r=2, quant_type="int4")])
def test_the_closed_form_matches_the_count(family: str, recipe: PeftConfig) -> None:
    peft = adapted(recipe, FAMILIES[family])
    assert count_recipe(FAMILIES[family], recipe, host()) == peft.get_nb_trainable_parameters()


def test_a_4_bit_weight_counts_as_one_even_while_merged() -> None:
    plain = sum(p.size for p in small().parameters())
    peft = adapted(QuantizeConfig())
    assert peft.get_nb_trainable_parameters() == (0, plain)
    peft.merge_adapter()
    assert peft.get_nb_trainable_parameters() == (0, plain)


@pytest.mark.parametrize("recipe", [QuantizeConfig(), QLoraConfig(r=2)])
def test_disabling_and_unloading_restore_the_base_bit_for_bit(recipe: PeftConfig) -> None:
    model = small()
    before, expected = Snapshot.of(model), logits(model)
    peft = get_peft_model(model, recipe, host=host())
    shake(peft)
    assert np.abs(logits(peft) - expected).max() > 1e-3
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), expected)
    peft.merge_adapter()
    before.assert_unchanged(peft.unload())


def test_a_copy_of_the_model_is_independent() -> None:
    peft = adapted(QLoraConfig(r=2))
    before = logits(peft)
    twin = copy.deepcopy(peft)
    np.testing.assert_array_equal(logits(twin), before)
    for layer in quantized(twin):
        layer.weight.codes[:] = 0
    np.testing.assert_array_equal(logits(peft), before)


def test_the_base_can_be_released_so_that_only_4_bits_are_left() -> None:
    model = small()
    expected = adapted(QuantizeConfig())
    peft = get_peft_model(model, QLoraConfig(r=2, target_modules="all-linear"), host=host())
    shake(peft)
    found, counted = logits(peft), peft.get_nb_trainable_parameters()
    floats = weakref.ref(
        next(r.before for r in peft.record.rewrites if isinstance(r.before, Linear))
    )
    peft.release_base()
    gc.collect()
    assert floats() is None
    np.testing.assert_array_equal(logits(peft), found)
    assert peft.get_nb_trainable_parameters() == counted
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), logits(expected))
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), found, atol=1e-5)
    assert not packed_paths(peft.base_model)
    base = peft.unload()
    np.testing.assert_array_equal(logits(base), logits(expected))


# ---------- other methods on a 4-bit base ----------


@pytest.mark.parametrize(
    "recipe",
    [
        [QuantizeConfig()],
        [QLoraConfig(r=2, target_modules="all-linear")],
        [QLoraConfig(r=2), LoraConfig(r=3, target_modules="all-linear", use_rslora=True)],
        [QuantizeConfig(double_quant=True), IA3Config(), LoraConfig(r=2)],
        [LoraConfig(r=2), QuantizeConfig(target_modules=["up_proj"])],
        [QuantizeConfig(quant_type="int4"), IA3Config()],
    ],
    ids=["alone", "qlora", "two loras", "ia3 and lora", "beside lora", "int4"],
)
def test_recipes_merge_to_floats_and_survive_a_file(
    recipe: list[PeftConfig], tmp_path: Path
) -> None:
    peft = adapted(recipe)
    shake(peft)
    found = logits(peft)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(), tmp_path, host=host())
    np.testing.assert_array_equal(logits(again), found)
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), found, atol=1e-5)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), found)
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(logits(merged), found, atol=1e-5)
    assert not packed_paths(merged)


def test_the_merged_model_can_be_saved_and_the_4_bit_one_cannot(tmp_path: Path) -> None:
    peft = adapted(QLoraConfig(r=2))
    with pytest.raises(CheckpointError, match="q_proj: expected Linear, got LoraLinear"):
        save_model(peft.base_model, tmp_path)
    save_model(peft.merge_and_unload(), tmp_path)


def test_a_saved_qlora_is_a_folder_without_tensors_and_one_with_the_lora(tmp_path: Path) -> None:
    peft = adapted(QLoraConfig(r=2, double_quant=True))
    peft.save_pretrained(tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["0-quantize", "1-lora"]
    written = [path.parent.name for path in tmp_path.glob("*/adapter_model.safetensors")]
    assert written == ["1-lora"]
    assert PeftModel.from_pretrained(small(), tmp_path, host=host()).recipe == peft.recipe


def test_the_lora_of_a_qlora_loads_alone_on_the_float_base(tmp_path: Path) -> None:
    peft = adapted(QLoraConfig(r=2))
    shake(peft)
    peft.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(small(), tmp_path / "1-lora", host=host())
    trained = [p.data for _, p in peft.named_parameters() if p.requires_grad]
    loaded = [p.data for name, p in alone.named_parameters() if ".lora_" in name]
    for ours, theirs in zip(trained, loaded, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("saved", [["classifier"], ["pooler.dense"], ["1.output.dense"]])
def test_modules_that_are_saved_whole_are_not_quantised(saved: list[str], tmp_path: Path) -> None:
    everything = packed_paths(adapted(QLoraConfig(r=2), BERT_CLASSIFIER).base_model)
    peft = adapted(QLoraConfig(r=2, modules_to_save=saved), BERT_CLASSIFIER)
    left = {path for path in everything if not path.endswith(f".{saved[0]}")}
    assert packed_paths(peft.base_model) == left
    shake(peft)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(BERT_CLASSIFIER), tmp_path, host=host())
    np.testing.assert_array_equal(logits(again), logits(peft))


def test_nothing_in_a_module_that_is_saved_whole_is_quantised() -> None:
    peft = adapted(QLoraConfig(r=2, modules_to_save=["mlp"]))
    assert {path.split(".")[3] for path in packed_paths(peft.base_model)} == {"self_attn"}


# ---------- what is refused ----------


def refused(recipe: Sequence[PeftConfig], model: Transformer, plugins: Host | None = None) -> str:
    before = Snapshot.of(model)
    with pytest.raises(PeftError) as caught:
        get_peft_model(model, recipe, host=plugins or host())
    before.assert_unchanged(model)
    return str(caught.value)


def test_quantising_an_adapted_layer_is_refused() -> None:
    recipe = [LoraConfig(r=2, layers_to_transform=0), QuantizeConfig()]
    assert refused(recipe, small()) == (
        "the recipe is refused:\n"
        "  - step 1: model.layers.0.self_attn.q_proj: step 0 already adapts it: quantize first\n"
        "  - step 1: model.layers.0.self_attn.v_proj: step 0 already adapts it: quantize first"
    )


def test_quantising_twice_is_refused() -> None:
    told = refused([QuantizeConfig(target_modules=["o_proj"])] * 2, small())
    assert told.count("step 0 already adapts it: quantize first") == LLAMA.num_hidden_layers


def test_quantising_a_4_bit_layer_to_another_format_is_refused() -> None:
    model = small()
    for seam in capture_seams(model):
        if seam.path.endswith("1.self_attn.o_proj"):
            assert isinstance(seam.module, Linear)
            seam.put(QuantizedLinear(quantize(seam.module.weight.data)))
    told = refused([QuantizeConfig(target_modules=["o_proj"], block_size=32)], model)
    assert told == (
        "the recipe is refused:\n  - step 0: model.layers.1.self_attn.o_proj: "
        "expected nf4 in blocks of 32, got nf4 in blocks of 64 already"
    )


def test_adapters_of_one_4_bit_base_share_it(tmp_path: Path) -> None:
    peft = get_peft_model(small(), QLoraConfig(r=2))
    shake(peft, 1)
    peft.save_pretrained(tmp_path)
    expected = logits(peft)
    peft.release_base()
    peft.load_adapter(tmp_path, "again")
    peft.set_adapter("again")
    np.testing.assert_array_equal(logits(peft), expected)
    layers = [m for _, m in peft.named_modules() if isinstance(m, QuantizedLinear)]
    peft.set_adapter("default")
    shared = [m for _, m in peft.named_modules() if isinstance(m, QuantizedLinear)]
    assert all(a.weight is b.weight for a, b in zip(layers, shared, strict=True))
    both = peft(IDS, adapter_names=["again", "default"]).data
    np.testing.assert_allclose(both, expected, atol=1e-6)
    plain = peft.merge_and_unload()
    np.testing.assert_allclose(logits(plain), expected, atol=1e-5)
    assert not any(isinstance(m, QuantizedLinear) for _, m in plain.named_modules())


@pytest.mark.parametrize("name", ["1.mlp", "up_proj", "model.layers.0.mlp.up_proj"])
def test_quantising_a_module_trained_whole_is_refused(name: str) -> None:
    told = refused([LoraConfig(r=2, modules_to_save=[name]), QuantizeConfig()], small())
    assert "mlp.up_proj: step 0 trains it by modules_to_save: leave it out here" in told


def test_training_a_quantised_module_whole_is_refused() -> None:
    told = refused([QuantizeConfig(), LoraConfig(r=2, modules_to_save=["up_proj"])], small())
    assert "modules_to_save: model.layers.0.mlp.up_proj is already taken by step 0" in told


def test_quantising_a_module_of_a_step_without_targets_is_refused() -> None:
    def wrap(config: PeftConfig, site: Site) -> Module | None:
        if isinstance(config, ShiftConfig) and site.slot in ("o_proj", "up_proj"):
            assert isinstance(site.module, Linear)
            return ShiftLinear(site.module, 0.0, site.init)
        return None

    plugins = host()
    plugins.register(plugin(ShiftConfig, adapt=wrap), "shift")
    recipe = [ShiftConfig(target_modules=["o_proj"]), QuantizeConfig(target_modules=["up_proj"])]
    assert refused(recipe, small(), plugins) == (
        "model.layers.0.mlp.up_proj: expected a Linear, got ShiftLinear: quantize first"
    )


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = small()
    for seam in capture_seams(model):
        if seam.path.endswith(("0.mlp.up_proj", "2.self_attn.k_proj")):
            assert isinstance(seam.module, Linear)
            seam.module.weight.data[1, 2] = np.nan
    why = "expected finite float32 values, to quantise them"
    with pytest.raises(PeftError) as caught:
        get_peft_model(model, QuantizeConfig(), host=host())
    assert str(caught.value) == (
        "the recipe is refused:\n"
        f"  - step 0: model.layers.0.mlp.up_proj.weight: {why}\n"
        f"  - step 0: model.layers.2.self_attn.k_proj.weight: {why}"
    )


def test_targets_other_than_linear_layers_are_refused() -> None:
    with pytest.raises(TargetError, match=r"names 3 modules \(RMSNorm\) that it cannot adapt"):
        adapted(QuantizeConfig(target_modules=["input_layernorm"]))


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(TargetError, match="shares its weight"):
        adapted(QuantizeConfig(target_modules=["lm_head"]), GPT2)


def test_weights_for_a_step_that_has_none_are_refused(tmp_path: Path) -> None:
    get_peft_model(small(), QLoraConfig(r=2)).save_pretrained(tmp_path)
    lora = tmp_path / "1-lora" / "adapter_model.safetensors"
    (tmp_path / "0-quantize" / lora.name).write_bytes(lora.read_bytes())
    with pytest.raises(CheckpointError, match="0-quantize: unexpected: base_model"):
        PeftModel.from_pretrained(small(), tmp_path)
