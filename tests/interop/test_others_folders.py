"""Folders as Hugging Face PEFT writes them: what opens there opens here, with the same logits."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import logits, own, peer, peer_logits
from tests.peft.configs.test_stored import INERT, NOTED
from tinygrad_peft import PeftModel

# PEFT warns of ties, of embeddings that it saves, and of settings without effect.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

QV = ["q_proj", "v_proj"]
TABLE = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings"}
TARGETS = {"gpt2": ["c_attn"], "llama": QV, "bert": ["query"]}


def trained(model: Any, config: Any) -> Any:  # noqa: ANN401 - torch's
    """PEFT's model with values that training would have changed, frozen tables included."""
    made = hf.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval()


def lora(family: str, **settings: Any) -> Any:  # noqa: ANN401
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    values = {"r": 2, "target_modules": TARGETS[family], **settings}
    return hf.LoraConfig(task_type=task, **values)


def assert_opens(folder: Path, family: str, **base: Any) -> PeftModel:  # noqa: ANN401
    """Compare with what PEFT itself gives for the folder, here and merged."""
    peer(family, **base).save_pretrained(folder / "base")
    theirs = hf.PeftModel.from_pretrained(peer(family, **base), folder).eval()
    wanted = peer_logits(theirs)
    ours = PeftModel.from_pretrained(own(folder / "base"), folder)
    np.testing.assert_allclose(logits(ours), wanted, atol=2e-5)
    ours.save_pretrained(folder / "again")
    again = hf.PeftModel.from_pretrained(peer(family, **base), folder / "again").eval()
    np.testing.assert_allclose(peer_logits(again), wanted, atol=2e-5)
    np.testing.assert_allclose(logits(ours.merge_and_unload()), wanted, atol=2e-5)
    return ours


@pytest.mark.parametrize("changed", [False, True], ids=["the base's", "other values"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", TABLE)
def test_tables_that_save_embedding_layers_writes(
    family: str, tied: bool, changed: bool, tmp_path: Path
) -> None:
    base = {} if family == "bert" else {"tie_word_embeddings": tied}
    model = trained(peer(family, **base), lora(family))
    if changed:
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(0.05)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert_opens(tmp_path, family, **base)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tables_beside_trained_tokens(family: str, tied: bool, tmp_path: Path) -> None:
    config = lora(family, trainable_token_indices={TABLE[family]: [3, 9]})
    model = trained(peer(family, tie_word_embeddings=tied), config)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert_opens(tmp_path, family, tie_word_embeddings=tied)


@pytest.mark.parametrize(
    "saved", [["pooler"], ["intermediate"], ["encoder"], ["layer.1", "pooler"]]
)
def test_containers_that_are_saved_whole(saved: list[str], tmp_path: Path) -> None:
    targets = r".*layer\.0\.attention\.self\.query" if "layer.1" in saved else ["query"]
    if saved == ["encoder"]:
        targets = ["pooler.dense"]
    config = lora("bert", modules_to_save=saved, target_modules=targets)
    model = trained(peer("bert"), config)
    model.save_pretrained(tmp_path)
    assert_opens(tmp_path, "bert")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("names", "ensured"), [("both", False), ("table", True), ("table", False), ("head", False)]
)
def test_ends_of_a_tie_that_are_saved_whole(
    family: str, names: str, ensured: bool, tmp_path: Path
) -> None:
    table, head = TABLE[family], "lm_head"
    saved = {"both": [table, head], "table": [table], "head": [head]}[names]
    config = lora(family, modules_to_save=saved, ensure_weight_tying=ensured)
    model = trained(peer(family, tie_word_embeddings=True), config)
    model.save_pretrained(tmp_path)
    ours = assert_opens(tmp_path, family, tie_word_embeddings=True)
    # PEFT writes the setting for GPT-2, and does not keep its tie.
    assert ours.config.tie_word_embeddings is (ensured and family == "llama")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("ensured", [False, True])
def test_loras_of_one_end_of_a_tie(family: str, ensured: bool, tmp_path: Path) -> None:
    targets = [*TARGETS[family], TABLE[family]]
    config = lora(family, target_modules=targets, ensure_weight_tying=ensured)
    model = trained(peer(family, tie_word_embeddings=True), config)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    theirs = hf.PeftModel.from_pretrained(peer(family, tie_word_embeddings=True), tmp_path).eval()
    peer(family, tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    ours = PeftModel.from_pretrained(own(tmp_path / "base"), tmp_path)
    np.testing.assert_allclose(logits(ours), peer_logits(theirs), atol=2e-5)


METHODS: dict[str, Any] = {
    "lora": lambda: lora("llama"),
    "adalora": lambda: hf.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=10, target_modules=QV
    ),
    "ia3": lambda: hf.IA3Config(task_type="CAUSAL_LM", target_modules=QV, feedforward_modules=[]),
    "vera": lambda: hf.VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=QV),
    "ln_tuning": lambda: hf.LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=["input_layernorm"]
    ),
    "prompt_tuning": lambda: hf.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p_tuning": lambda: hf.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
    ),
    "prefix_tuning": lambda: hf.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("method", METHODS)
def test_settings_without_effect_are_those_of_peft(method: str, tmp_path: Path) -> None:
    """PEFT opens a folder with each setting, or refuses it for training; both logits are equal."""
    model = trained(peer("llama"), METHODS[method]())
    model.save_pretrained(tmp_path / "a")
    peer("llama").save_pretrained(tmp_path / "base")
    wanted = peer_logits(hf.PeftModel.from_pretrained(peer("llama"), tmp_path / "a").eval())
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    opened = 0
    for number, (key, value) in enumerate(
        (key, value)
        for table in (INERT, NOTED)
        for key, values in table[method].items()
        for value in values
    ):
        folder = copytree(tmp_path / "a", tmp_path / str(number))
        (folder / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
        ours = PeftModel.from_pretrained(own(tmp_path / "base"), folder)
        np.testing.assert_allclose(logits(ours), wanted, atol=2e-5, err_msg=f"{key}={value!r}")
        try:
            theirs = hf.PeftModel.from_pretrained(peer("llama"), folder).eval()
        except (ValueError, TypeError, ImportError):
            continue
        opened += 1
        np.testing.assert_array_equal(peer_logits(theirs), wanted, err_msg=f"{key}={value!r}")
    assert opened or method == "ln_tuning"
