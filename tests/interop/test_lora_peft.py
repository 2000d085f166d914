"""Adapters that are written here give the same logits in PEFT, and the other way round."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model
from tinygrad_peft_lora import LoraConfig

# PEFT warns of Conv1D, and of names that it means to change.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TARGETS = {
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value", "intermediate.dense"],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "usual targets": {"r": 4, "target_modules": None},
    "all-linear": {"r": 2, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
    "a regular expression": {"r": 2, "target_modules": r".*\.1\..*(c_attn|q_proj|query)"},
    "one layer": {"r": 2, "layers_to_transform": [1]},
    "exclusions": {"r": 2, "target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
    "patterns": {
        "r": 4,
        "target_modules": "all-linear",
        "rank_pattern": {r"0\..*": 2},
        "alpha_pattern": {r"1\..*": 1, ".*(down_proj|c_fc|dense)": 16},
    },
    "biases of targets": {"r": 2, "bias": "lora_only"},
    "all biases": {"r": 2, "bias": "all"},
    "gaussian": {"r": 2, "init_lora_weights": "gaussian"},
}


@pytest.fixture(params=TARGETS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    peer(family).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(family: str, option: str, *, saving: bool) -> dict[str, Any]:
    chosen: dict[str, Any] = {"target_modules": TARGETS[family], **OPTIONS[option]}
    if saving and family == "bert":
        chosen["modules_to_save"] = ["classifier"]
    return chosen


def shaken_peer(family: str, **config: Any) -> Any:  # noqa: ANN401
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    peft = hf.get_peft_model(peer(family), hf.LoraConfig(task_type=task, **config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft.eval()


@pytest.mark.parametrize("option", OPTIONS)
def test_peft_reads_what_is_written_here(
    family: str, option: str, base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(**settings(family, option, saving=True))
    peft = shaken(get_peft_model(own(base), config))
    peft.save_pretrained(tmp_path / "adapter")
    loaded = hf.PeftModel.from_pretrained(peer(family), tmp_path / "adapter").eval()
    expected = peer_logits(loaded)
    assert np.abs(expected - peer_logits(peer(family))).max() > 1e-3
    np.testing.assert_allclose(logits(peft), expected, atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_peft_writes_is_read_here(
    family: str, option: str, base: Path, tmp_path: Path
) -> None:
    theirs = shaken_peer(family, **settings(family, option, saving=False))
    theirs.save_pretrained(tmp_path / "adapter")
    # PEFT sorts the patterns when it writes them, so what it reads may differ from what it wrote.
    theirs = hf.PeftModel.from_pretrained(peer(family), tmp_path / "adapter").eval()
    loaded = PeftModel.from_pretrained(own(base), tmp_path / "adapter")
    np.testing.assert_allclose(logits(loaded), peer_logits(theirs), atol=1e-4)
    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(logits(merged), peer_logits(theirs.merge_and_unload()), atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_both_write_the_same_tensors_and_count_the_same(
    family: str, option: str, base: Path, tmp_path: Path
) -> None:
    chosen = settings(family, option, saving=True)
    ours = get_peft_model(own(base), LoraConfig(**chosen))
    theirs = shaken_peer(family, **chosen)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    shapes = [
        {k: tuple(v.shape) for k, v in hf.load_peft_weights(str(tmp_path / name)).items()}
        for name in ("ours", "theirs")
    ]
    wrapped = [k for k in shapes[1] if ".modules_to_save." in k or ".original_module." in k]
    assert shapes[0] == {k: v for k, v in shapes[1].items() if k not in wrapped}
    written, read = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    assert written.keys() <= read.keys()


@pytest.mark.parametrize("option", OPTIONS)
def test_both_match_the_same_modules(family: str, option: str, base: Path) -> None:
    chosen = {**settings(family, option, saving=False), "bias": "none"}
    ours = get_peft_model(own(base), LoraConfig(**chosen))
    theirs = shaken_peer(family, **chosen)
    assert {r.seam.path for r in ours.record.rewrites} == set(theirs.targeted_module_names)
