"""Weighted sums of LoRAs that train more than A and B (tests/peft has the plain ones)."""

import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.peft.small import BERT_CLASSIFIER, GPT2, LLAMA, logits, lora_host
from tests.plugins.several_adapters import merged_weights, several
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import PeftModel
from tinygrad_peft_lora import LoraConfig

WEIGHTS = (0.7, -0.4)


def assert_exact(peft: PeftModel, weights: Sequence[float] = WEIGHTS) -> None:
    """Assert that each weight is the base's plus the weighted sum of the updates."""
    names = list(peft.adapters)
    assert peft.add_weighted_adapter(names, weights, "sum") == {}
    with peft.disable_adapter():
        base = {path: p.data for path, p in peft.base_model.named_parameters()}
    each = [merged_weights(peft, name) for name in names]
    for path, found in merged_weights(peft, "sum").items():
        start = base.get(path, np.zeros_like(found))  # a bias that merging created
        parts = [own.get(path, start) for own in each]
        expected = start + sum(w * (own - start) for w, own in zip(weights, parts, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=path)


def lora(**settings: Any) -> LoraConfig:  # noqa: ANN401
    return LoraConfig(**{"r": 2, "lora_alpha": 3, **settings})


PAIRS: Mapping[str, tuple[TransformerConfig, LoraConfig, LoraConfig]] = {
    "biases of B": (LLAMA, lora(lora_bias=True), lora(lora_bias=True, use_rslora=True)),
    "a bias of B in one": (GPT2, lora(lora_bias=True), lora(target_modules=["c_attn", "c_fc"])),
    "biases of targets": (BERT_CLASSIFIER, lora(bias="lora_only"), lora(bias="lora_only", r=3)),
    "all biases and none": (
        BERT_CLASSIFIER,
        lora(bias="all", target_modules=["query"]),
        lora(target_modules=["query", "intermediate.dense"]),
    ),
    "all biases and those of targets": (
        BERT_CLASSIFIER,
        lora(bias="all", target_modules=["query"]),
        lora(bias="lora_only", target_modules=["key"]),
    ),
    "embeddings": (
        LLAMA,
        lora(target_modules=["embed_tokens"]),
        lora(target_modules=["embed_tokens", "q_proj"], r=3),
    ),
    "pissa and lora": (LLAMA, lora(init_lora_weights="pissa"), lora()),
    "pissa and olora": (
        GPT2,
        lora(init_lora_weights="pissa", use_rslora=True),
        lora(init_lora_weights="olora", rank_pattern={r"0\..*": 3}),
    ),
    "tokens": (LLAMA, lora(trainable_token_indices=[3, 9]), lora(trainable_token_indices=[9, 4])),
    "tokens of a tie": (
        GPT2,
        lora(trainable_token_indices={"wte": [3, 9]}),
        lora(trainable_token_indices={"wte": [9, 4]}),
    ),
    "tokens in one": (LLAMA, lora(trainable_token_indices=[3, 9]), lora()),
    "layers by pattern": (
        LLAMA,
        lora(layers_to_transform=1, layers_pattern="layers"),
        lora(layers_to_transform=2),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_sum_is_exact(name: str) -> None:
    shape, one, other = PAIRS[name]
    assert_exact(several(shape, lora_host(), one=one, other=other))


@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(bias="all"),
        lora(lora_bias=True),
        lora(init_lora_weights="pissa"),
        lora(init_lora_weights="olora", use_rslora=True, lora_dropout=0.1),
        lora(trainable_token_indices=[3, 9]),
        lora(target_modules=["word_embeddings"], use_dora=True),
    ],
    ids=str,
)
def test_one_adapter_of_weight_one_is_unchanged(config: LoraConfig) -> None:
    peft = several(BERT_CLASSIFIER, lora_host(), one=config)
    expected = logits(peft)
    peft.add_weighted_adapter(["one"], [1.0], "same")
    peft.set_adapter("same")
    # A plain LoRA's α/√r and PiSSA's may differ in the last digit of float64.
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-14, atol=1e-14)
    assert peft.recipe == (config.flattened(),)


def test_ties_and_dare_apply_to_biases() -> None:
    for how in ("ties", "dare_linear", "dare_ties"):
        peft = several(LLAMA, lora_host(), one=lora(lora_bias=True), other=lora(lora_bias=True))
        peft.add_weighted_adapter(
            ["one", "other"], WEIGHTS, "sum", combination_type=how, density=0.25
        )
        peft.set_adapter("sum")
        named = peft.record.named_parameters(0)
        for name, parameter in named.items():
            if name.endswith("lora_B.bias"):
                assert 0 < np.count_nonzero(parameter.data) < parameter.size


def test_doras_cannot_be_combined() -> None:
    peft = several(LLAMA, lora_host(), one=lora(use_dora=True), other=lora())
    with pytest.raises(PeftError, match="cannot combine these LoRAs:\n  - use_dora: magnitudes"):
        peft.add_weighted_adapter(["one", "other"], WEIGHTS, "sum")
    with pytest.raises(PeftError, match="use_dora"):
        peft.add_weighted_adapter(["one"], [0.5], "half")
    assert list(peft.adapters) == ["one", "other"]


def test_tokens_of_different_modules_cannot_be_combined() -> None:
    peft = several(
        LLAMA,
        lora_host(),
        one=lora(trainable_token_indices={"lm_head": [1]}),
        other=lora(trainable_token_indices={"embed_tokens": [1]}),
    )
    message = "expected the same modules, got embed_tokens and lm_head"
    with pytest.raises(PeftError, match=message):
        peft.add_weighted_adapter(["one", "other"], WEIGHTS, "sum")


def test_a_large_table_is_combined_by_its_narrow_side() -> None:
    shape = replace(LLAMA, vocab_size=3000)
    table = lora(target_modules=["embed_tokens"])
    peft = several(shape, lora_host(), one=table, other=table)
    tracemalloc.start()
    try:
        peft.add_weighted_adapter(["one", "other"], WEIGHTS, "sum", combination_type="ties")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 3
