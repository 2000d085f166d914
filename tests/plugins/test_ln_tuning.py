from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peft.small import FAMILIES, IDS, LLAMA, ShiftConfig, logits, plugin, shake, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, TargetError
from tinygrad_peft.nn import LayerNorm, Module, RMSNorm, Transformer, TransformerConfig
from tinygrad_peft.nn.seams import Norm
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    PeftModel,
    Site,
    count_recipe,
    get_peft_model,
    inspect_path,
)
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig

NORMS = {
    "gpt2": ["transformer.h.0.ln_1", "transformer.h.1.ln_2", "transformer.ln_f"],
    "llama": [
        "model.layers.0.input_layernorm",
        "model.layers.2.post_attention_layernorm",
        "model.norm",
    ],
    "bert": [
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.0.attention.output.LayerNorm",
        "bert.encoder.layer.1.output.LayerNorm",
    ],
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adapted(family: str, config: LNTuningConfig | None = None) -> PeftModel:
    return get_peft_model(small(FAMILIES[family]), config or LNTuningConfig())


def norms(model: Transformer) -> list[LayerNorm | RMSNorm]:
    return [m for _, m in model.named_modules() if isinstance(m, LayerNorm | RMSNorm)]


def refused(config: TransformerConfig, *recipe: LNTuningConfig | LoraConfig) -> str:
    with pytest.raises(PeftError) as caught:
        get_peft_model(small(config), list(recipe))
    return str(caught.value)


# ---------- which norms ----------


def test_it_trains_all_norms_by_default_and_nothing_else(family: str) -> None:
    peft = adapted(family)
    trained = {id(p) for norm in norms(peft.base_model) for p in norm.parameters()}
    assert {id(p) for p in peft.trainable_parameters()} == trained
    paths = [rewrite.seam.path for rewrite in peft.record.rewrites]
    assert len(paths) == 2 * FAMILIES[family].num_hidden_layers + 1
    assert set(NORMS[family]) < set(paths)


def test_names_and_exclusions_select_norms(family: str) -> None:
    last = NORMS[family][1]
    peft = adapted(family, LNTuningConfig(target_modules=NORMS[family], exclude_modules=[last]))
    assert {r.seam.path for r in peft.record.rewrites} == {*NORMS[family]} - {last}
    second = adapted(family, LNTuningConfig(target_modules=r".*\.1\..*(ln_\d|orm)"))
    assert {r.seam.layer for r in second.record.rewrites} == {1}
    assert len(second.record.rewrites) == 2


def test_targets_other_than_norms_are_refused() -> None:
    why = refused(LLAMA, LNTuningConfig(target_modules=["norm", "q_proj", "mlp"]))
    assert "model.layers.1.self_attn.q_proj: ln_tuning expected a norm, got Linear" in why
    assert "model.layers.0.mlp: ln_tuning expected a norm, got GatedFeedForward" in why
    assert "model.norm:" not in why


def test_only_one_step_may_train_a_norm() -> None:
    assert "model.norm: an earlier step already trains this norm" in refused(
        LLAMA,
        LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]),
        LNTuningConfig(target_modules=["norm"]),
    )
    assert "already" in refused(LLAMA, LNTuningConfig(), LNTuningConfig(target_modules=["norm"]))
    apart = [LNTuningConfig(target_modules=[name]) for name in ("norm", "input_layernorm")]
    assert len(get_peft_model(small(), apart).trainable_parameters()) == 1 + 3


class Wrapped(Module):
    def __init__(self, base: Norm) -> None:
        self.base = base

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x)


def test_a_norm_that_an_earlier_step_has_wrapped_is_refused() -> None:
    def wrap(config: PeftConfig, site: Site) -> Module | None:
        wanted = isinstance(config, ShiftConfig) and site.is_target
        return Wrapped(site.module) if wanted and isinstance(site.module, Norm) else None

    host = Host.installed()
    host.register(plugin(ShiftConfig, adapt=wrap), "wrapping")
    recipe = [ShiftConfig(target_modules=["norm"]), LNTuningConfig(target_modules=["norm"])]
    with pytest.raises(PeftError, match=r"model\.norm: expected a norm, got Wrapped"):
        get_peft_model(small(), recipe, host=host)


def test_two_adapters_cannot_act_on_one_norm_at_once() -> None:
    peft = adapted("llama")
    peft.add_adapter("other", LNTuningConfig())
    with pytest.raises(PeftError, match=r"model\.norm: RMSNorm replaces the module there"):
        peft.set_adapter(["default", "other"])
    peft.set_adapter("other")


# ---------- what it computes ----------


def by_hand(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    found: Array = gamma * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + beta
    return found


def test_a_trained_layer_norm_is_its_formula() -> None:
    peft = adapted("gpt2")
    shake(peft)
    norm = norms(peft.base_model)[0]
    assert isinstance(norm, LayerNorm)
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    expected = by_hand(x, norm.weight.data, norm.bias.data, norm.eps)
    np.testing.assert_allclose(norm(Tensor(x)).data, expected, rtol=1e-5, atol=1e-6)


def test_the_model_uses_each_trained_norm_forwards_and_backwards(family: str) -> None:
    peft = adapted(family)
    base = logits(peft)
    labels = np.array([0, 1]) if family == "bert" else IDS
    peft.loss(IDS, labels).backward()
    for rewrite in peft.record.rewrites:
        for parameter in rewrite.added.values():
            assert parameter.grad is not None
            assert np.abs(parameter.grad).max() > 0
            parameter.data[3] += 0.5
            assert np.abs(logits(peft) - base).max() > 1e-4, rewrite.seam.path
            parameter.data[3] -= 0.5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_a_cache_uses_the_trained_norms(family: str) -> None:
    peft = adapted(family)
    shake(peft)
    ids = IDS
    for _ in range(4):
        with no_grad():
            ids = np.concatenate([ids, peft(ids).data[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(peft.generate(IDS, max_new_tokens=4), ids)
    with peft.disable_adapter():
        assert not np.array_equal(peft.generate(IDS, max_new_tokens=4), ids)


def test_a_merged_model_is_the_base_with_trained_norms(family: str) -> None:
    peft = adapted(family)
    shake(peft)
    expected, trained = logits(peft), [p.data for p in peft.trainable_parameters()]
    plain = peft.merge_and_unload()
    np.testing.assert_array_equal(logits(plain), expected)
    merged = [p for norm in norms(plain) for p in norm.parameters()]
    assert not any(p.requires_grad for p in merged)
    base = [p.data for norm in norms(small(FAMILIES[family])) for p in norm.parameters()]
    for parameter, own, before in zip(merged, trained, base, strict=True):
        np.testing.assert_array_equal(parameter.data, own)
        assert not np.array_equal(parameter.data, before)


# ---------- counts and files ----------


def test_the_base_own_norms_count_beside_their_copies_as_in_peft(family: str) -> None:
    model = FAMILIES[family]
    size = model.hidden_size * (1 if family == "llama" else 2)
    trained = size * (2 * model.num_hidden_layers + 1)
    expected = trained, small(model).count() + trained
    assert adapted(family).get_nb_trainable_parameters() == expected
    assert count_recipe(model, LNTuningConfig(), Host.installed()) == expected


def test_targets_other_than_norms_are_not_counted() -> None:
    with pytest.raises(PeftError, match="q_proj: ln_tuning expected a norm, got Linear"):
        count_recipe(LLAMA, LNTuningConfig(target_modules=["q_proj"]), Host.installed())
    with pytest.raises(TargetError, match="'nrom' matches no module"):
        count_recipe(LLAMA, LNTuningConfig(target_modules=["nrom"]), Host.installed())


def test_a_file_has_pefts_names(family: str, tmp_path: Path) -> None:
    adapted(family, LNTuningConfig(target_modules=NORMS[family][:1])).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    fields = ["weight"] if family == "llama" else ["bias", "weight"]
    path = f"base_model.model.{NORMS[family][0]}.ln_tuning_layers"
    assert list(stored) == [f"{path}.{field}" for field in fields]
    assert inspect_path(tmp_path, Host.installed()).sound


def test_inspect_checks_names_and_shapes() -> None:
    path = "transformer.ln_f.ln_tuning_layers"
    problems = LNTuningConfig().contradictions
    assert not problems({f"{path}.weight": (8,), f"{path}.bias": (8,), "score.weight": (3, 8)})
    assert problems({f"{path}.weight": (8, 8)}) == [
        f"{path}.weight: expected a vector, got shape (8, 8)"
    ]
    assert problems({f"{path}.bias": (8,)}) == [
        f"{path}.bias (8,): {path}.weight of the same shape is missing"
    ]
    assert problems({f"{path}.scale": (8,)}) == [
        f"{path}.scale: expected a weight or a bias, got 'scale'"
    ]
