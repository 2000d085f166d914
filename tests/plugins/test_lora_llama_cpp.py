"""LoRA folders in llama.cpp, by the rules of its convert_lora_to_gguf.

The rules are written down here by themselves: which tensors it takes, at which it stops, how it
calls them, and how they are scaled when they are used.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peft.small import BERT, GPT2, LLAMA, lora_host, shake, small
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import PeftModel, get_peft_model, inspect_path
from tinygrad_peft_lora import LoraConfig, LoraLinear

LORA = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
CONVERTED: dict[str, tuple[TransformerConfig, LoraConfig]] = {
    "a LoRA": (LLAMA, LORA),
    "all layers": (LLAMA, replace(LORA, target_modules="all-linear")),
    "ranks of their own": (LLAMA, replace(LORA, rank_pattern={"q_proj": 4})),
    "a start taken out of the base": (LLAMA, replace(LORA, init_lora_weights="pissa")),
    "the output layer": (LLAMA, replace(LORA, target_modules=["lm_head", "q_proj"])),
    "the embedding": (LLAMA, replace(LORA, target_modules=["embed_tokens", "q_proj"])),
    "trained norms": (LLAMA, replace(LORA, modules_to_save=["post_attention_layernorm", "norm"])),
    "an encoder": (BERT, replace(LORA, target_modules=["query", "output.dense"])),
}
STOPPED: dict[str, LoraConfig] = {
    "DoRA": replace(LORA, use_dora=True),
    "a bias of B": replace(LORA, lora_bias=True),
    "a whole module": replace(LORA, modules_to_save=["lm_head"]),
    "single tokens": replace(LORA, trainable_token_indices=[3]),
}
SCALED: dict[str, LoraConfig] = {
    "rsLoRA": replace(LORA, use_rslora=True),
    "alphas of their own": replace(LORA, alpha_pattern={"q_proj": 7}),
}


def saved(folder: Path, shape: TransformerConfig, config: LoraConfig) -> PeftModel:
    peft = get_peft_model(small(shape), config, host=lora_host())
    shake(peft)
    peft.save_pretrained(folder, flatten=True)
    return PeftModel.from_pretrained(small(shape), folder, host=lora_host())


def converted(folder: Path) -> dict[str, AnyArray]:
    """Return each base weight's update as in llama.cpp; SystemExit where the converter stops."""
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    pairs: dict[str, dict[str, AnyArray]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        half = next((h for h in "AB" if f".lora_{h}.weight" in name), "")
        half = half or next((h for h in "AB" if f".lora_embedding_{h}" in name), "")
        if not half:
            if ".base_layer.weight" in name or "_layernorm" in name or ".norm" in name:
                continue
            raise SystemExit(name)
        base = name.replace("base_model.model.", "")
        for old in (f".lora_{half}.weight", f".lora_embedding_{half}"):
            base = base.replace(old, ".weight")
        pairs.setdefault(base, {})[half] = tensor
    return {
        base: alpha / pair["B"].shape[1] * pair["B"] @ pair["A"] for base, pair in pairs.items()
    }


def told(folder: Path) -> object:
    return inspect_path(folder, lora_host()).facts["llama.cpp"]


def updates(peft: PeftModel) -> dict[str, AnyArray]:
    layers = {f"{r.seam.path}.weight": r.after for r in peft.record.rewrites if not r.saved}
    return {path: m.delta() for path, m in layers.items() if isinstance(m, LoraLinear)}


@pytest.mark.parametrize("option", CONVERTED)
def test_the_converted_update_is_the_same(option: str, tmp_path: Path) -> None:
    peft = saved(tmp_path, *CONVERTED[option])
    found, expected = converted(tmp_path), updates(peft)
    assert expected.keys() == {name for name in found if "embed_tokens" not in name}
    for path, update in expected.items():
        np.testing.assert_allclose(found[path], update, atol=1e-6)
    assert told(tmp_path) == "converts"


@pytest.mark.parametrize("option", CONVERTED)
def test_converted_tensors_have_names(option: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    shape, config = CONVERTED[option]
    saved(tmp_path, shape, config)
    kind = {"llama": gguf.MODEL_ARCH.LLAMA, "bert": gguf.MODEL_ARCH.BERT}[shape.model_type]
    names = gguf.get_tensor_name_map(kind, shape.num_hidden_layers)
    for base in converted(tmp_path):  # the converter of BERT removes its prefix
        assert names.get_name(base.removeprefix("bert."), try_suffixes=(".weight",)) is not None


@pytest.mark.parametrize("option", STOPPED)
def test_refused_tensors_are_reported(option: str, tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, STOPPED[option])
    with pytest.raises(SystemExit) as stop:
        converted(tmp_path)
    message = str(told(tmp_path))
    assert message.startswith("it stops at ")
    assert str(stop.value).rpartition(".")[2] in message


@pytest.mark.parametrize("option", SCALED)
def test_ignored_scalings_are_reported(option: str, tmp_path: Path) -> None:
    peft = saved(tmp_path, LLAMA, SCALED[option])
    found, expected = converted(tmp_path), updates(peft)
    assert any(np.abs(found[path] - update).max() > 1e-3 for path, update in expected.items())
    setting = {"rsLoRA": "use_rslora", "alphas of their own": "alpha_pattern"}[option]
    assert setting in str(told(tmp_path))


def test_transposed_updates_of_gpt2_are_reported(tmp_path: Path) -> None:
    saved(tmp_path, GPT2, LoraConfig(r=2))
    # It transposes the base's weights, which are (in, out); but updates are (out, in) already.
    turned = converted(tmp_path)["transformer.h.0.attn.c_attn.weight"].T
    assert turned.shape == (16, 48)
    assert "transposes GPT-2's updates" in str(told(tmp_path))


def test_tensors_outside_the_targets_are_reported_without_the_base(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA, LORA)
    (tmp_path / "recipe.json").unlink()
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    values["target_modules"] = ["down_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    problems = inspect_path(tmp_path, lora_host()).problems
    assert problems == ["3 modules 'q_proj' have tensors, but are not in target_modules"]
