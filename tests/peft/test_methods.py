import dataclasses
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, ShiftConfig, lora_host, plugin, small
from tinygrad_peft.errors import ConfigError, PluginError
from tinygrad_peft.peft import (
    Host,
    PeftModel,
    apply_recipe,
    get_peft_model,
    methods_of,
    parse_method,
)
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_vera import VeraConfig


def test_methods_are_sorted_by_their_names_in_lower_case() -> None:
    host = Host()
    host.register(plugin(ShiftConfig), "first")
    host.register(plugin(VeraConfig, LoraConfig), "second")
    assert list(methods_of(host).items()) == [
        ("lora", LoraConfig),
        ("shift", ShiftConfig),
        ("vera", VeraConfig),
    ]


def test_a_missing_method_names_the_plugins_that_cannot_be_used() -> None:
    host = Host.installed(without=["vera"])
    broken = "\nbroken plugins that might provide it:\n  - plugin 'vera' of tinygrad-peft"
    with pytest.raises(ConfigError, match="unknown method 'vera'") as asked:
        parse_method("vera:r=4", host)
    with pytest.raises(PluginError, match="no registered plugin provides VeraConfig") as applied:
        apply_recipe(small(), VeraConfig(target_modules=["q_proj"]), host)
    for caught in (asked, applied):
        assert broken in str(caught.value)
        assert str(caught.value).endswith(": switched off")


def test_a_folder_of_a_missing_method_names_them_too(tmp_path: Path) -> None:
    model = small(dataclasses.replace(LLAMA, num_key_value_heads=LLAMA.num_attention_heads))
    config = VeraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(model, config, host=Host.installed()).save_pretrained(tmp_path)
    host = Host.installed(without=["vera"])
    with pytest.raises(PluginError, match=r"(?s)method 'vera'.*'vera' of .*: switched off"):
        PeftModel.from_pretrained(small(), tmp_path, host=host)


def test_without_broken_plugins_nothing_is_said_of_them() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_method("vera", lora_host())
    assert "cannot be used" not in str(caught.value)
