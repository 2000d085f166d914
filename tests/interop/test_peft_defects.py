"""Defects of PEFT 0.21.2; tests/plugins/test_peft_defects.py tests the right behaviour here.

If one of these fails with a later PEFT, the defect was fixed there, and the test can go.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.tiny import peer, peer_logits

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


def made(family: str = "llama", **settings: Any) -> Any:  # noqa: ANN401
    chosen = {"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    peft = hf.get_peft_model(peer(family), hf.LoraConfig(**chosen), adapter_name="a")
    shake(peft)
    return peft.eval()


def another(peft: Any, **settings: Any) -> Any:  # noqa: ANN401
    chosen = {"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    peft.add_adapter("b", hf.LoraConfig(**chosen))
    shake(peft)
    return peft


def shake(peft: Any) -> None:  # noqa: ANN401
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


def update(peft: Any, name: str) -> torch.Tensor:  # noqa: ANN401
    layer = peft.base_model.model.model.layers[0].self_attn.q_proj
    found: torch.Tensor = layer.get_delta_weight(name).detach()
    return found


@pytest.mark.parametrize(
    ("settings", "kind"), [({}, "linear"), ({"use_rslora": True, "lora_alpha": 8}, "cat")]
)
def test_the_weighted_combination_is_not_the_sum(settings: dict[str, Any], kind: str) -> None:
    peft = another(made(**settings), **settings)
    peft.add_weighted_adapter(["a", "b"], [0.6, 0.4], "sum", combination_type=kind)
    expected = 0.6 * update(peft, "a") + 0.4 * update(peft, "b")
    assert (update(peft, "sum") - expected).norm() > 0.2 * expected.norm()


def test_a_pissa_source_changes_the_base() -> None:
    peft = another(made(init_lora_weights="pissa"), init_lora_weights="pissa")
    weight = peft.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    before = weight.detach().clone()
    peft.add_weighted_adapter(["a", "b"], [0.6, 0.4], "sum", combination_type="cat")
    assert (weight.detach() - before).abs().max() > 1e-3


def test_overlapping_patterns_mean_something_else_after_a_reload(tmp_path: Path) -> None:
    peft = made(alpha_pattern={"q_proj": 4, ".*_proj": 1})
    expected = peer_logits(peft)
    peft.save_pretrained(tmp_path)
    again = hf.PeftModel.from_pretrained(peer("llama"), tmp_path / "a").eval()
    assert np.abs(peer_logits(again) - expected).max() > 1e-3


def test_a_merged_tied_embedding_gives_something_else() -> None:
    peft = made("gpt2", target_modules=["wte"])
    expected = peer_logits(peft)
    assert np.abs(peer_logits(peft.merge_and_unload()) - expected).max() > 1e-2


def test_a_misspelt_target_is_left_out_in_silence() -> None:
    peft = made(target_modules=["q_proj", "v_porj"])
    assert {name.rpartition(".")[2] for name in peft.targeted_module_names} == {"q_proj"}


def test_a_name_in_modules_to_save_is_the_end_of_other_names_too() -> None:
    peft = made(modules_to_save=["norm"])
    trained = {name for name, p in peft.named_parameters() if ".modules_to_save." in name}
    assert any("input_layernorm" in name for name in trained)


def test_all_keys_may_be_wrong(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = {k.replace("base_model", "model"): tensor for k, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    read = hf.PeftModel.from_pretrained(peer("llama"), tmp_path / "a").eval()
    np.testing.assert_array_equal(peer_logits(read), peer_logits(peer("llama")))


def test_an_adapter_that_is_called_as_a_module_empties_the_file_of_another(tmp_path: Path) -> None:
    peft = made()
    peft.add_adapter("q_proj", hf.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    peft.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any("q_proj" in name for name in tensors)


def test_unknown_settings_are_ignored(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_another_method": True}))
    read = hf.PeftModel.from_pretrained(peer("llama"), tmp_path / "a")
    assert not hasattr(read.peft_config["default"], "use_another_method")


def test_a_dora_of_weight_one_is_not_itself() -> None:
    peft = made(use_dora=True)
    expected = peer_logits(peft)
    peft.add_weighted_adapter(["a"], [1.0], "same", combination_type="linear")
    peft.set_adapter("same")
    assert np.abs(peer_logits(peft) - expected).max() > 1e-3


def test_unmerging_does_not_give_back_the_bits() -> None:
    model = peer("llama").to(torch.bfloat16)
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    peft = hf.get_peft_model(model, hf.LoraConfig(r=4, target_modules=["q_proj"]))
    shake(peft)
    peft.merge_adapter()
    peft.unmerge_adapter()
    assert not torch.equal(weight, before)


def test_a_prefix_that_was_read_is_not_trained_on(tmp_path: Path) -> None:
    config = hf.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    hf.get_peft_model(peer("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
        hf.PeftModel.from_pretrained(peer("llama"), tmp_path, is_trainable=True)


def test_a_classifiers_adapter_without_its_head_does_not_open(tmp_path: Path) -> None:
    config = hf.LoraConfig(r=2, target_modules=["query"])
    hf.get_peft_model(peer("bert"), config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": "SEQ_CLS"}))
    with pytest.raises(KeyError, match="classifier"):
        hf.PeftModel.from_pretrained(peer("bert"), tmp_path)


def test_the_config_that_was_given_is_changed() -> None:
    config = hf.LoraConfig(r=2, target_modules=["c_attn"])
    hf.get_peft_model(peer("gpt2"), config)
    assert config.fan_in_fan_out


def test_disabling_while_merged_unmerges() -> None:
    peft = made()
    peft.merge_adapter()
    layer = peft.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.merged
    with peft.disable_adapter():
        peer_logits(peft)
    assert not layer.merged


def test_olora_breaks_on_a_fused_projection() -> None:
    peft = made("gpt2", target_modules=["c_attn"], init_lora_weights="olora")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        peer_logits(peft)
