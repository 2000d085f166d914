"""Saving, loading and saving an adapter again gives the same files, byte for byte."""

from pathlib import Path

import pytest

from tests.peft.small import BERT_CLASSIFIER, small
from tinygrad_peft.peft import PeftConfig, PeftModel, get_peft_model
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig
from tinygrad_peft_qlora import QLoraConfig, QuantizeConfig
from tinygrad_peft_vera import VeraConfig

CONFIGS = [
    BottleneckAdapterConfig(),
    BottleneckAdapterConfig(reduction_factor=4, scaling=2),
    IA3Config(),
    LNTuningConfig(),
    LoraConfig(),
    LoraConfig(r=4, lora_alpha=16, alpha_pattern={"value": 2}),
    PrefixTuningConfig(num_virtual_tokens=2),
    PromptEncoderConfig(num_virtual_tokens=2),
    PromptTuningConfig(num_virtual_tokens=2),
    QLoraConfig(),
    QuantizeConfig(),
    VeraConfig(),
    VeraConfig(r=4, d_initial=1, save_projection=False),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_loaded_adapter_is_saved_as_the_same_bytes(config: PeftConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    get_peft_model(small(BERT_CLASSIFIER), config).save_pretrained(first)
    loaded = PeftModel.from_pretrained(small(BERT_CLASSIFIER), first)
    loaded.save_pretrained(second)
    assert contents(second) == contents(first)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
