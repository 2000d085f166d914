"""The size of a recipe, which is known before anything is allocated."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, small
from tinygrad_peft.errors import ConfigError, PeftError, TinygradPeftError
from tinygrad_peft.peft import PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig
from tinygrad_peft_vera import VeraConfig

HUGE = 10**8
PROJECTED = PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=4)
STEPS: dict[str, tuple[PeftConfig, str]] = {
    "lora": (LoraConfig(r=2), "r"),
    "adapter": (BottleneckAdapterConfig(bottleneck_dim=4), "bottleneck_dim"),
    "projected prefix": (PROJECTED, "encoder_hidden_size"),
    "prefix": (PrefixTuningConfig(num_virtual_tokens=2), "num_virtual_tokens"),
    "prompt": (PromptTuningConfig(num_virtual_tokens=2), "num_virtual_tokens"),
    "vera": (VeraConfig(r=2), "r"),
    "vera, not saved": (VeraConfig(r=2, save_projection=False), "r"),
}
TOLD = r"expected at most 1,000,000,000 new elements, got [\d,]{13,} \([\d,]+ GB in float32\)"
# Positions and the limit of VeRA's rank refuse these first.
OTHERS = r"virtual tokens|the rank r=100000000 must be at most 100,000"


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_adds_too_much_is_refused_by_its_size(name: str, tmp_path: Path) -> None:
    config, setting = STEPS[name]
    get_peft_model(small(LLAMA), config).save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        values = json.loads(file.read_text("utf-8"))
        if setting in values:
            file.write_text(json.dumps(values | {setting: HUGE}), encoding="utf-8")
    told = rf"{TOLD}|{OTHERS}"
    with pytest.raises(TinygradPeftError, match=told):
        get_peft_model(small(LLAMA), replace(config, **{setting: HUGE}))  # type: ignore[arg-type]
    with pytest.raises(TinygradPeftError, match=told):
        PeftModel.from_pretrained(small(LLAMA), tmp_path)
    problems = inspect_path(tmp_path).problems
    assert any(re.search(told, problem) for problem in problems)


def test_the_message_has_the_number_of_elements_and_bytes() -> None:
    with pytest.raises(PeftError) as caught:
        get_peft_model(small(LLAMA), LoraConfig(r=HUGE, target_modules=["q_proj"]))
    assert str(caught.value).splitlines()[1] == (
        "  - step 0, lora: expected at most 1,000,000,000 new elements, got 9,600,000,000 "
        "(38 GB in float32)"
    )


def test_a_large_rank_is_applied_where_it_fits() -> None:
    peft = get_peft_model(small(LLAMA), LoraConfig(r=1_000, target_modules=["q_proj"]))
    assert peft.get_nb_trainable_parameters()[0] == 96_000


def test_many_modules_with_trained_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most 100 modules, got 101"):
        LoraConfig(trainable_token_indices={f"a{n}": [0] for n in range(101)})
