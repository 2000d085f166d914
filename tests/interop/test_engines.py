"""A model merged and saved here opens in transformers like any checkpoint, with the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.interop.tiny import logits, own, peer, peer_logits, shaken
from tinygrad_peft import get_peft_model, load_model, save_model
from tinygrad_peft.models import SaveDtype
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QLoraConfig

# Between them is the order in which float32 numbers are added: 2e-7 where logits are below 1.
SAME = 1e-5
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings"}
BASES = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "bert": ("bert", {}),
}
RECIPES: dict[str, list[PeftConfig]] = {
    "lora": [LoraConfig(r=2, target_modules="all-linear")],
    "dora": [LoraConfig(r=2, target_modules="all-linear", use_dora=True)],
    "biases": [LoraConfig(r=2, target_modules="all-linear", lora_bias=True)],
    "tokens": [LoraConfig(r=2, trainable_token_indices=[3, 49])],
    "lora and lora": [
        LoraConfig(r=2, target_modules="all-linear"),
        LoraConfig(r=4, use_rslora=True),
    ],
    "qlora": [QLoraConfig(r=2, target_modules="all-linear", block_size=32)],
}
EMBEDDED = ["gpt2, untied", "llama", "bert"]  # one side of a tie is never adapted alone
CASES = [
    *((base, name) for base in BASES for name in RECIPES),
    *((base, name) for base in EMBEDDED for name in ("embedding", "embedding with dora")),
]


def recipe(base: str, name: str) -> list[PeftConfig]:
    if name in RECIPES:
        return RECIPES[name]
    targets = [EMBEDDING[BASES[base][0]]]
    return [LoraConfig(r=2, target_modules=targets, use_dora=name.endswith("dora"))]


def transformers_model(base: str) -> Any:  # noqa: ANN401 - transformers' models have no common type
    family, settings = BASES[base]
    return peer(family, **settings)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for base in BASES:
        transformers_model(base).save_pretrained(folder / base)
    return folder


@pytest.mark.parametrize(("base", "name"), CASES)
def test_a_merged_model_has_the_adapters_logits_in_transformers(
    base: str, name: str, bases: Path, tmp_path: Path
) -> None:
    peft = shaken(get_peft_model(own(bases / base), recipe(base, name)))
    adapted = logits(peft)
    assert np.abs(adapted - logits(own(bases / base))).max() > 1e-3
    merged = peft.merge_and_unload()
    save_model(merged, tmp_path)
    opened, told = type(transformers_model(base)).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = peer_logits(opened.eval())
    np.testing.assert_allclose(found, logits(merged), atol=SAME)
    np.testing.assert_allclose(found, adapted, atol=SAME)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("base", ["gpt2", "llama, tied", "bert"])
def test_a_merged_model_of_any_dtype_is_the_same_in_transformers(
    base: str, dtype: SaveDtype, bases: Path, tmp_path: Path
) -> None:
    merged = shaken(get_peft_model(own(bases / base), RECIPES["dora"])).merge_and_unload()
    save_model(merged, tmp_path, dtype=dtype)
    codes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {codes[dtype]}  # noqa: SIM118
    kind = type(transformers_model(base))
    assert kind.from_pretrained(tmp_path).dtype == getattr(torch, dtype)
    opened = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    np.testing.assert_allclose(peer_logits(opened), logits(load_model(tmp_path)), atol=SAME)
