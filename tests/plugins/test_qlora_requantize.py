import warnings

import numpy as np
import pytest

from tests.peft.small import LLAMA, logits, small
from tests.plugins.four_bit import adapted, host, packed_paths
from tinygrad_peft.errors import PeftError, PrecisionWarning
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft_lora import LoraConfig, LoraLinear
from tinygrad_peft_qlora import (
    LayerReport,
    QLoraConfig,
    QuantizeConfig,
    QuantizedLinear,
    RequantizeReport,
    merge_requantized,
)

WIDE = TransformerConfig(
    model_type="llama",
    vocab_size=50,
    hidden_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=8,
    norm="rms_norm",
    positions="rotary",
    gated_mlp=True,
    activation="silu",
)


def learnt(share: float, config: QLoraConfig, model: Transformer) -> PeftModel:
    """Return a QLoRA with updates of a given size relative to the weights."""
    peft = get_peft_model(model, config, host=host())
    rng = np.random.default_rng(0)
    for rewrite in peft.record.rewrites:
        layer = rewrite.after
        if isinstance(layer, LoraLinear):
            b = rng.normal(size=layer.lora_B.weight.shape).astype(np.float32)
            layer.lora_B.weight.data = b
            assert isinstance(layer.base_layer, QuantizedLinear)
            size = np.linalg.norm(layer.base_layer.dequantized().weight.data)
            layer.lora_B.weight.data = b * np.float32(share * size / np.linalg.norm(layer.delta()))
    return peft


def requantized(share: float, **settings: object) -> RequantizeReport:
    config = QLoraConfig(r=8, target_modules="all-linear", **settings)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        return merge_requantized(learnt(share, config, Transformer(WIDE)))[1]


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.02, 0, 0.2), (0.08, 0.5, 0.8), (0.5, 0.95, 1)]
)
def test_the_surviving_part_of_an_update_depends_on_its_size(
    share: float, low: float, high: float
) -> None:
    report = requantized(share)
    assert len(report.layers) == 7
    for layer in report.layers:
        assert layer.update == pytest.approx(share, rel=1e-3)
        assert low < layer.cosine < high
    assert report.lost == (report.layers if share == 0.02 else ())


@pytest.mark.parametrize("settings", [{"double_quant": True}, {"quant_type": "int4"}])
def test_the_other_kinds_lose_small_updates_too(settings: dict[str, object]) -> None:
    assert all(layer.cosine < 0.5 for layer in requantized(0.02, **settings).layers)
    assert all(layer.cosine > 0.9 for layer in requantized(0.5, **settings).layers)


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_report_measures_the_weights_that_are_there_now(*, double_quant: bool) -> None:
    config = QLoraConfig(r=4, target_modules=["q_proj"], double_quant=double_quant)
    peft = learnt(0.3, config, small())
    before = {
        r.seam.path: r.after.dequantized().weight.data
        for r in peft.record.rewrites
        if isinstance(r.after, QuantizedLinear)
    }
    meant = {
        r.seam.path: r.after.delta()
        for r in peft.record.rewrites
        if isinstance(r.after, LoraLinear)
    }
    seams = {r.seam.path: r.seam for r in peft.record.rewrites}
    model, report = merge_requantized(peft)
    assert {layer.path for layer in report.layers} == set(meant)
    for layer in report.layers:
        now = seams[layer.path].module
        assert isinstance(now, QuantizedLinear)
        got, wanted = now.dequantized().weight.data - before[layer.path], meant[layer.path]
        lengths = np.linalg.norm(got) * np.linalg.norm(wanted)
        assert layer.cosine == pytest.approx(float((got * wanted).sum() / lengths), abs=1e-4)
        off = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert layer.relative_error == pytest.approx(float(off), abs=1e-4)
    assert not model.adapted


@pytest.mark.parametrize("double_quant", [False, True])
def test_codes_without_an_update_are_unchanged(*, double_quant: bool) -> None:
    peft = adapted(QLoraConfig(r=2, double_quant=double_quant))
    expected, paths = logits(peft), packed_paths(adapted(QuantizeConfig()).base_model)
    model, report = merge_requantized(peft)
    np.testing.assert_allclose(logits(model), expected, atol=1e-6)
    assert report.layers == ()
    assert packed_paths(model) == paths
    twin = adapted(QuantizeConfig(double_quant=double_quant))
    np.testing.assert_array_equal(logits(model), logits(twin))


def test_the_4_bit_model_can_be_trained_with_another_lora() -> None:
    model, _ = merge_requantized(learnt(0.5, QLoraConfig(r=4), small()))
    lora = LoraConfig(r=2, target_modules=["down_proj"])
    peft = get_peft_model(model, lora, host=host())
    ids = np.array([[1, 2, 3]])
    peft.loss(ids, labels=ids).backward()
    assert all(p.grad is not None for p in peft.trainable_parameters())


def test_a_large_update_is_near_the_float_merge() -> None:
    config = QLoraConfig(r=8, target_modules=["q_proj"], block_size=32)
    kept, exact = (learnt(2.0, config, Transformer(WIDE)) for _ in range(2))
    before = logits(exact.base_model)
    model, report = merge_requantized(kept)
    assert min(layer.cosine for layer in report.layers) > 0.99
    np.testing.assert_allclose(logits(exact.merge_and_unload()), before, atol=1e-4)
    off = np.linalg.norm(logits(model) - before) / np.linalg.norm(before)
    assert off < 0.05


def test_a_warning_says_how_many_layers_lost_their_update() -> None:
    peft = learnt(0.01, QLoraConfig(r=4, target_modules="all-linear"), Transformer(WIDE))
    with pytest.warns(PrecisionWarning) as caught:
        merge_requantized(peft)
    (warning,) = caught
    assert str(warning.message) == (
        "7 of 7 layers lost more than half of their update to quantisation: "
        "merge to float instead, with merge_and_unload()"
    )
    assert warning.filename == __file__


def test_the_report_is_printed_as_a_table() -> None:
    report = RequantizeReport(
        (
            LayerReport("model.layers.0.q_proj", 0.0203, 0.0312, 1.0049),
            LayerReport("model.layers.11.q_proj", 0.51, 0.98, 0.2),
        )
    )
    assert str(report).splitlines() == [
        "layer                   |ΔW|/|W|  cosine  relative error",
        "model.layers.0.q_proj     0.0203   0.031           1.005",
        "model.layers.11.q_proj    0.5100   0.980           0.200",
    ]
    assert [layer.path for layer in report.lost] == ["model.layers.0.q_proj"]


@pytest.mark.parametrize("config", [LoraConfig(r=2), QLoraConfig(r=2)])
def test_a_model_without_4_bit_layers_is_refused(config: LoraConfig) -> None:
    peft = adapted(config)
    peft.merge_adapter()
    before = logits(peft)
    with pytest.raises(PeftError, match="expected 4-bit layers that are not merged yet, got none"):
        merge_requantized(peft)
    np.testing.assert_array_equal(logits(peft), before)


def test_a_released_base_is_quantised_again_like_a_held_one() -> None:
    config = QLoraConfig(r=4, target_modules=["q_proj"])
    held, released = (learnt(0.4, config, small()) for _ in range(2))
    released.release_base()
    (model, report), (other, same) = merge_requantized(held), merge_requantized(released)
    assert report == same
    np.testing.assert_array_equal(logits(model), logits(other))
    assert packed_paths(model) == packed_paths(other)


def test_a_refused_merge_changes_nothing() -> None:
    peft = learnt(0.1, QLoraConfig(r=2), small(LLAMA))
    for parameter in peft.trainable_parameters()[:2]:
        parameter.data[:] = np.nan
    with pytest.raises(PeftError, match="would hold NaN or infinity"):
        merge_requantized(peft)
    assert len(packed_paths(peft.base_model)) > 0
    assert peft.recipe


def test_a_weight_too_large_for_float32_leaves_the_adapter_unmerged() -> None:
    peft = get_peft_model(small(LLAMA, np.float64), QLoraConfig(r=2), host=host())
    for parameter in peft.trainable_parameters():
        parameter.data = parameter.data + 1e25
    with pytest.raises(PeftError, match="expected finite float32 values"):
        merge_requantized(peft)
    assert any(isinstance(m, LoraLinear) for _, m in peft.named_modules())
    peft.merge_adapter()
