"""Settings in a file: what changes a number is refused, and what does not is passed over."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peft.small import LLAMA, logits, shake, small
from tinygrad_peft.errors import AdapterWarning, ConfigError
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inspect_path,
    methods_of,
)
from tinygrad_peft_adalora import AdaLoraConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig
from tinygrad_peft_vera import VeraConfig

HOST = Host.installed()
QV = ["q_proj", "v_proj"]
METHODS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=2, target_modules=QV),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=QV),
    "ia3": IA3Config(target_modules=QV, feedforward_modules=[]),
    "vera": VeraConfig(r=4, target_modules=QV),
    "ln_tuning": LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt_tuning": PromptTuningConfig(num_virtual_tokens=3),
    "p_tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix_tuning": PrefixTuningConfig(num_virtual_tokens=3),
}
TARGETED = ("lora", "adalora", "vera")
OFF: Mapping[str, Any] = {
    "use_next_thing": None,
    "next_thing": False,
    "next_things": [],
    "next_config": {},
    "next_rate": 0.0,
    "next_name": "",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    "inference_mode": None,
    "revision": "main",
    "modules_to_save": None,
}
# Each was tried with PEFT 0.21.2: it opens the folder, and its logits are the same bits.
INERT: Mapping[str, Mapping[str, list[Any]]] = {
    "lora": {
        "layers_pattern": [[], "", None],
        "init_lora_weights": [None, False, "Gaussian", "eva", "mica", "orthogonal"],
        "megatron_config": [None, {}],
        "megatron_core": [None, "megatron.other"],
        "merge_weights": [True, False],
        "enable_lora": [None],
        "trainable_token_indices": [None, {}],
        "loftq_config": [None, {"loftq_bits": 4}],
        "eva_config": [{"rho": 1.0}],
        "corda_config": [{"cache_file": "x"}],
        "lora_ga_config": [{"direction": "ArB2r"}],
        "velora_config": [{"num_groups": 4}],
        "monteclora_config": [{"num_samples": 4}],
        "use_dora": [None],
        "use_rslora": [None],
        "lora_bias": [None],
        "use_qalora": [None],
        "qalora_group_size": [32, None],
        "alora_invocation_tokens": [[], None],
        "layer_replication": [[], None],
        "target_parameters": [[], None],
        "ensure_weight_tying": [None, True],
        "lora_dropout": [0.3],
        "fan_in_fan_out": [True, None],
        "runtime_config": [{"ephemeral_gpu_offload": True}],
    },
    "adalora": {
        "tinit": [3],
        "deltaT": [None],
        "target_r": [9, 0],
        "init_lora_weights": [None, False, "gaussian", "eva", "pissa"],
        "rank_pattern": [None, {}],
        "r": [9],
        "alpha_pattern": [{"q_proj": 3}],
        "lora_bias": [True],
        "use_rslora": [True],
        "loftq_config": [{"loftq_bits": 4}],
        "use_qalora": [True],
        "qalora_group_size": [32],
        "kasa_config": [{"beta": 0.1}],
        "megatron_config": [{"a": 1}],
        "ensure_weight_tying": [True],
    },
    "ia3": {"init_ia3_weights": [False, None], "fan_in_fan_out": [True, None]},
    "vera": {"init_weights": [False, None, "zero"], "d_initial": [3.0], "fan_in_fan_out": [True]},
    "ln_tuning": {"exclude_modules": [[], None]},
    "prompt_tuning": {
        "prompt_tuning_init": ["SAMPLE_VOCAB"],
        "prompt_tuning_init_text": ["hello"],
        "tokenizer_name_or_path": ["/nowhere"],
        "tokenizer_kwargs": [None, {}, {"trust_remote_code": False}],
        "num_layers": [None],
    },
    "p_tuning": {
        "encoder_reparameterization_type": ["LSTM"],
        "encoder_hidden_size": [None, 7],
        "encoder_num_layers": [7],
    },
    "prefix_tuning": {"encoder_hidden_size": [7], "init_weights": [None, "zero"]},
}
# The same, of values that no new adapter may have: they are named in a warning.
NOTED: Mapping[str, Mapping[str, list[Any]]] = {
    "lora": {
        "rank_pattern": [{"nothing": 9}],
        "alpha_pattern": [{"nothing": 9}],
        "lora_dropout": [1.0],
        "target_modules": [[*QV, "nothing"]],
        "exclude_modules": [["nothing"]],
        "modules_to_save": [["nothing"]],
        "layers_to_transform": [[0, 1, 2, 99]],
    },
    "adalora": {
        "tinit": [-1],
        "deltaT": [0],
        "beta1": [0, 1, 1.5],
        "beta2": [0],
        "total_step": [0],
        "lora_dropout": [1.0],
    },
    "ia3": {"modules_to_save": [["nothing"]]},
    "vera": {"d_initial": [0.0], "vera_dropout": [1.0]},
    "ln_tuning": {},
    "prompt_tuning": {"prompt_tuning_init": ["nonsense", "TEXT"]},
    "p_tuning": {
        "encoder_reparameterization_type": ["nonsense"],
        "encoder_hidden_size": [0],
        "encoder_dropout": [2.0],
    },
    "prefix_tuning": {"encoder_hidden_size": [0], "init_weights": ["nonsense"]},
}
# Settings that change numbers, or whose meaning is unknown.
ASKING: Mapping[str, Mapping[str, Any]] = {
    "lora": {
        "use_next_thing": True,
        "next_rate": 0.5,
        "init_lora_weights": "corda",
        "loftq_config": None,
        "alora_invocation_tokens": [1, 2],
        "kasa_config": {"beta": 0.1},
        "use_bdlora": {"nblocks": 1},
        "layer_replication": [[0, 2]],
        "lora_alpha": None,
        "target_modules": [],
    },
    "ia3": {"next_rate": 0.5},
    "vera": {"r": None},
}


def cases(table: Mapping[str, Mapping[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(method, key, value, id=f"{method} {key}={value!r}")
        for method, settings in table.items()
        for key, values in settings.items()
        for value in values
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """For each method, a folder as PEFT would write it, and the logits of its adapter."""
    made = {}
    for name, config in METHODS.items():
        folder = tmp_path_factory.mktemp(name)
        peft = get_peft_model(small(), config, host=HOST)
        shake(peft)
        peft.save_pretrained(folder, flatten=True)
        (folder / "recipe.json").unlink()
        made[name] = folder, logits(load(folder))
    return made


def load(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(small(), folder, host=HOST)


def edited(folder: Path, to: Path, **values: object) -> Path:
    """Link a folder's weights into another one, with some settings changed."""
    to.mkdir()
    (to / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(settings | values))
    return to


@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_off_are_passed_over(
    method: str, folders: dict[str, tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    folder, wanted = folders[method]
    place = edited(folder, tmp_path / "a", **OFF)
    np.testing.assert_array_equal(logits(load(place)), wanted)


@pytest.mark.parametrize("method", TARGETED)
def test_an_empty_choice_chooses_everything(
    method: str, folders: dict[str, tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    folder, wanted = folders[method]
    empty: dict[str, object] = {"layers_to_transform": [], "layers_pattern": []}
    place = edited(folder, tmp_path / "a", **empty, exclude_modules=[])
    loaded = load(place)
    np.testing.assert_array_equal(logits(loaded), wanted)
    (config,) = loaded.recipe
    with pytest.raises(ConfigError, match="layers_to_transform is empty"):
        type(config)(layers_to_transform=[])  # type: ignore[call-arg]


@pytest.mark.parametrize(("method", "key", "value"), cases(INERT))
def test_settings_without_effect_on_trained_weights_are_passed_over(
    method: str,
    key: str,
    value: object,
    folders: dict[str, tuple[Path, np.ndarray]],
    tmp_path: Path,
) -> None:
    folder, wanted = folders[method]
    place = edited(folder, tmp_path / "a", **{key: value})
    np.testing.assert_array_equal(logits(load(place)), wanted)
    report = inspect_path(place, HOST, base=LLAMA)
    assert (report.sound, report.notes) == (True, [])


@pytest.mark.parametrize(("method", "key", "value"), cases(NOTED))
def test_settings_that_somebody_may_have_meant_are_noted(
    method: str,
    key: str,
    value: object,
    folders: dict[str, tuple[Path, np.ndarray]],
    tmp_path: Path,
) -> None:
    folder, wanted = folders[method]
    place = edited(folder, tmp_path / "a", **{key: value})
    with pytest.warns(AdapterWarning) as caught:
        loaded = load(place)
    np.testing.assert_array_equal(logits(loaded), wanted)
    named = key if "nothing" not in str(value) else "nothing"
    assert named in str(caught[0].message)
    report = inspect_path(place, HOST, base=LLAMA)
    assert report.sound
    assert named in report.notes[0]


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [(method, key, value) for method, named in ASKING.items() for key, value in named.items()],
)
def test_settings_that_change_a_number_are_refused(
    method: str,
    key: str,
    value: object,
    folders: dict[str, tuple[Path, np.ndarray]],
    tmp_path: Path,
) -> None:
    if key == "loftq_config":
        values: dict[str, object] = {"init_lora_weights": "loftq", key: {"loftq_bits": 4}}
    else:
        values = {key: value}
    place = edited(folders[method][0], tmp_path / "a", **values)
    with pytest.raises(ConfigError, match=key):
        load(place)


def test_a_valid_setting_beside_an_invalid_one_is_kept(
    folders: dict[str, tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    place = edited(folders["adalora"][0], tmp_path / "a", beta1=1.5, lora_dropout=0.25)
    with pytest.warns(AdapterWarning, match="beta1 has no effect .*a number between 0 and 1"):
        loaded = load(place)
    (config,) = loaded.recipe
    assert isinstance(config, AdaLoraConfig)
    assert (config.beta1, config.lora_dropout) == (0.85, 0.25)


def test_the_installed_methods_are_all_tried() -> None:
    theirs = {"quantize", "qlora", "adapter", "bitfit", "loreft"}  # of no class of PEFT's
    assert methods_of(HOST).keys() - theirs == METHODS.keys()
