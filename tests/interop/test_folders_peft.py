"""Folders with several adapters, and with the steps of a recipe, between here and PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig

# PEFT warns of Conv1D, of several adapters, and of heads that it names and a file has not.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj"], "bert": ["query", "output.dense"]}
NAMES = ["default", "other", "lora_A", "base_layer", "weight", "model"]
VIRTUAL = [PrefixTuningConfig(num_virtual_tokens=3), PromptTuningConfig(num_virtual_tokens=2)]


@pytest.fixture(params=TARGETS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    peer(family).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(family: str, rank: int) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": 16, "target_modules": TARGETS[family]}


def place(folder: Path, name: str) -> Path:
    return folder if name == "default" else folder / name


def told_apart(found: Sequence[np.ndarray]) -> bool:
    return all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(found) for b in found[:i])


def test_several_adapters_of_any_names_go_from_here_to_peft(
    family: str, base: Path, tmp_path: Path
) -> None:
    names = [*NAMES, TARGETS[family][0]]
    ours = get_peft_model(own(base), LoraConfig(**settings(family, 1)), adapter_name=names[0])
    for rank, name in enumerate(names[1:], start=2):
        ours.add_adapter(name, LoraConfig(**settings(family, rank)))
    expected = []
    for name in names:
        ours.set_adapter(name)
        expected.append(logits(shaken(ours)))
    assert told_apart(expected)
    ours.save_pretrained(tmp_path / "adapters")
    for name, wanted in zip(names, expected, strict=True):
        folder = place(tmp_path / "adapters", name)
        read = hf.PeftModel.from_pretrained(peer(family), folder, adapter_name=name).eval()
        np.testing.assert_allclose(peer_logits(read), wanted, atol=1e-4)


def test_several_adapters_of_any_names_come_from_peft(
    family: str, base: Path, tmp_path: Path
) -> None:
    names = ["default", "other", "base_layer"]  # among others PEFT confuses some: below
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    theirs: Any = None
    for rank, name in enumerate(names, start=1):
        config = hf.LoraConfig(task_type=task, **settings(family, rank))
        if theirs is None:
            theirs = hf.get_peft_model(peer(family), config, adapter_name=name)
        else:
            theirs.add_adapter(name, config)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path / "adapters")
    ours = PeftModel.from_pretrained(own(base), tmp_path / "adapters")
    for name in names[1:]:
        ours.load_adapter(tmp_path / "adapters" / name, name)
    found = []
    for name in names:
        theirs.set_adapter(name)
        ours.set_adapter(name)
        found.append(logits(ours))
        np.testing.assert_allclose(found[-1], peer_logits(theirs), atol=1e-4)
    assert told_apart(found)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_of_any_name_comes_from_peft(
    family: str, name: str, base: Path, tmp_path: Path
) -> None:
    theirs = hf.get_peft_model(peer(family), hf.LoraConfig(**settings(family, 2)), name)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path / "adapters")
    ours = PeftModel.from_pretrained(
        own(base), place(tmp_path / "adapters", name), adapter_name=name
    )
    np.testing.assert_allclose(logits(ours), peer_logits(theirs), atol=1e-4)


@pytest.mark.parametrize("virtual", VIRTUAL, ids=lambda config: type(config).__name__)
def test_each_step_of_a_recipe_opens_in_peft_by_itself(
    family: str, virtual: PeftConfig, base: Path, tmp_path: Path
) -> None:
    steps = [
        LoraConfig(**settings(family, 2)),
        LoraConfig(**settings(family, 4), use_rslora=True),
        virtual,
    ]
    shaken(get_peft_model(own(base), steps)).save_pretrained(tmp_path / "recipe")
    found = []
    for number, step in enumerate(steps):
        folder = tmp_path / "recipe" / f"{number}-{step.peft_type.lower()}"
        theirs = hf.PeftModel.from_pretrained(peer(family), folder).eval()
        alone = logits(PeftModel.from_pretrained(own(base), folder))
        np.testing.assert_allclose(peer_logits(theirs), alone, atol=1e-4)
        found.append(alone[..., -1, :])
    assert told_apart(found)


def test_two_loras_of_a_recipe_are_two_adapters_of_peft(
    family: str, base: Path, tmp_path: Path
) -> None:
    steps = [LoraConfig(**settings(family, 2)), LoraConfig(**settings(family, 4), use_rslora=True)]
    ours = shaken(get_peft_model(own(base), steps))
    ours.save_pretrained(tmp_path / "recipe")
    theirs = hf.PeftModel.from_pretrained(peer(family), tmp_path / "recipe" / "0-lora")
    theirs.load_adapter(tmp_path / "recipe" / "1-lora", "second")
    theirs.base_model.set_adapter(["default", "second"])
    np.testing.assert_allclose(peer_logits(theirs.eval()), logits(ours), atol=1e-4)


def test_peft_opens_an_adapter_by_the_name_of_its_base(
    family: str, base: Path, tmp_path: Path
) -> None:
    head: dict[str, Any] = {"modules_to_save": ["classifier"]} if family == "bert" else {}
    ours = shaken(get_peft_model(own(base), LoraConfig(**settings(family, 2), **head)))
    ours.save_pretrained(tmp_path / "adapter")
    auto = {
        "gpt2": hf.AutoPeftModelForCausalLM,
        "llama": hf.AutoPeftModelForCausalLM,
        "bert": hf.AutoPeftModelForSequenceClassification,
    }
    theirs = auto[family].from_pretrained(tmp_path / "adapter").eval()
    np.testing.assert_allclose(peer_logits(theirs), logits(ours), atol=1e-4)
