import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pytest

from tests.peft.small import ShiftConfig, lora_host, plugin
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft import (
    Host,
    PeftConfig,
    config_from_dict,
    config_to_dict,
    dropout_problems,
    parse_method,
)
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QuantizeConfig

HOST = lora_host()
HOST.register(plugin(ShiftConfig), "shift")

# adapter_config.json as PEFT 0.21 writes it for GPT-2.
WRITTEN_BY_PEFT = """{
  "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
  "base_model_name_or_path": "gpt2", "bias": "none", "corda_config": null,
  "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
  "fan_in_fan_out": true, "inference_mode": true, "init_lora_weights": true, "kasa_config": null,
  "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
  "loftq_config": {}, "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.1,
  "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
  "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA",
  "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4, "rank_pattern": {},
  "revision": null, "target_modules": ["c_attn"], "target_parameters": null,
  "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
  "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
}"""


# ---------- what a config is ----------


def test_a_config_is_frozen_and_lists_in_it_become_tuples() -> None:
    names = ["q_proj", "v_proj"]
    config = LoraConfig(target_modules=names)
    names.append("k_proj")
    assert config.target_modules == ("q_proj", "v_proj")
    assert config == LoraConfig(target_modules=("q_proj", "v_proj"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 4  # type: ignore[misc]


def test_a_config_does_not_change_with_the_mapping_that_it_was_made_of() -> None:
    ranks = {"q_proj": 2}
    config = LoraConfig(r=4, rank_pattern=ranks)
    ranks["q_proj"] = 0
    assert config.rank("layer.q_proj") == 2


def test_dropout_rates_outside_zero_to_one_are_listed_by_name() -> None:
    assert dropout_problems(first=0.0, second=0.999) == []
    assert dropout_problems(first=1.0, second=0.5, third=-0.1) == [
        "first=1.0 must be at least 0 and below 1",
        "third=-0.1 must be at least 0 and below 1",
    ]


def test_a_method_that_peft_does_not_have_takes_layers_beside_an_expression() -> None:
    config = QuantizeConfig(target_modules="all-linear", layers_to_transform=1)
    assert config.layers_to_transform == 1


def test_a_set_of_targets_has_one_order_whatever_the_hash_seed() -> None:
    config = LoraConfig(target_modules={"v_proj", "q_proj", "k_proj"})  # type: ignore[arg-type]
    assert config.target_modules == ("k_proj", "q_proj", "v_proj")


def test_numbers_are_settled_as_they_are_read_from_a_file() -> None:
    given: dict[str, Any] = {"r": np.int64(2), "lora_alpha": 4}
    config = LoraConfig(**given, alpha_pattern={"q_proj": 3, "v_proj": np.float64(1)})
    numbers = (config.r, config.lora_alpha, *config.alpha_pattern.values())
    assert [(type(n), n) for n in numbers] == [(int, 2), (float, 4), (float, 3), (float, 1)]


def test_all_problems_with_a_config_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, lora_dropout=1.0, target_modules="(", rank_pattern={"[": 3, "q": -1})
    message = str(caught.value)
    assert message.startswith("invalid LoraConfig:")
    for problem in (
        "the rank r=0 must be at least 1",
        "the rank q=-1 must be at least 1",
        "lora_dropout=1.0 must be at least 0 and below 1",
        "target_modules: invalid regular expression '('",
        "rank_pattern: invalid regular expression '['",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lora_alpha": math.nan}, "lora_alpha: expected a finite number, got nan"),
        ({"lora_alpha": 0}, "lora_alpha=0.0 must be a number other than 0"),
        ({"lora_alpha": math.inf}, "lora_alpha: expected a finite number, got inf"),
        (
            {"alpha_pattern": {"q": math.nan}},
            "alpha_pattern['q']: expected a finite number, got nan",
        ),
        ({"lora_dropout": math.nan}, "lora_dropout: expected a finite number, got nan"),
        ({"bias": "some"}, "bias: expected one of none, all, lora_only, got 'some'"),
        (
            {"init_lora_weights": "pisa"},
            "'pissa', 'pissa_niter_N', 'olora' or 'orthogonal'; did you mean 'pissa'",
        ),
        ({"init_lora_weights": "eva"}, "init_lora_weights='eva' must be"),
        ({"init_lora_weights": "pissa_niter_"}, "did you mean 'pissa_niter_4'"),
        ({"init_lora_weights": 2}, "init_lora_weights: expected bool or str, got 2"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "r=3 must be even for 'orthogonal'"),
        (
            {"init_lora_weights": "orthogonal", "rank_pattern": {"q": 5}},
            "q=5 must be even for 'orthogonal'",
        ),
        ({"init_lora_weights": "pissa", "lora_alpha": -1}, "lora_alpha=-1.0 must be above 0"),
        ({"lora_bias": True, "use_dora": True}, "lora_bias and use_dora exclude each other"),
        (
            {"lora_bias": True, "init_lora_weights": "gaussian"},
            "lora_bias starts at zero, which excludes init_lora_weights='gaussian'",
        ),
        (
            {"use_dora": True, "init_lora_weights": "olora"},
            "use_dora needs the whole weight, which excludes init_lora_weights='olora'",
        ),
        (
            {"target_modules": "all-linear", "layers_to_transform": 1},
            "layers_to_transform needs target_modules as a list or None",
        ),
        ({"layers_pattern": "h"}, "layers_pattern has no effect without layers_to_transform"),
        (
            {"layers_to_transform": 1, "layers_pattern": ["h", "("]},
            "layers_pattern: invalid regular expression '('",
        ),
        ({"trainable_token_indices": []}, "'embed_tokens': expected at least one id"),
        ({"trainable_token_indices": {"wte": []}}, "'wte': expected at least one id"),
        ({"trainable_token_indices": [3, -1]}, "expected ids of at least 0, got -1"),
        ({"trainable_token_indices": {"wte": [3, 1, 3]}}, "'wte': 3 appears 2 times"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ""}, "target_modules is empty"),
        ({"layers_to_transform": []}, "layers_to_transform is empty"),
        ({"exclude_modules": "*"}, "exclude_modules: invalid regular expression '*'"),
        ({"modules_to_save": "classifier"}, "modules_to_save: expected list, got 'classifier'"),
    ],
)
def test_an_invalid_setting_is_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**settings)
    assert problem in str(caught.value)


def test_each_config_says_only_what_is_its_own_business() -> None:
    assert PeftConfig().problems() == []
    assert ShiftConfig(target_modules="all-linear").problems() == []


# ---------- JSON ----------


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(),
        LoraConfig(
            r=3,
            lora_alpha=1.5,
            lora_dropout=0.25,
            use_rslora=True,
            bias="lora_only",
            init_lora_weights="gaussian",
            rank_pattern={"b.*": 2, "a": 4},
            alpha_pattern={"z": 1.0, "a|b": 2.0},
            target_modules=["q_proj", "v_proj"],
            exclude_modules=r".*\.0\..*",
            layers_to_transform=[0, 2],
            modules_to_save=["classifier"],
        ),
        LoraConfig(target_modules="all-linear"),
        LoraConfig(layers_to_transform=1, layers_pattern="layers"),
        LoraConfig(use_dora=True, init_lora_weights="orthogonal", trainable_token_indices=[3, 1]),
        LoraConfig(lora_bias=True, trainable_token_indices={"wte": [3, 1], "lm_head": [3, 1]}),
        LoraConfig(init_lora_weights="pissa_niter_16"),
        LoraConfig(init_lora_weights=False),
    ],
)
def test_a_config_survives_json(config: LoraConfig) -> None:
    text = json.dumps(config_to_dict(config))
    read = config_from_dict(LoraConfig, json.loads(text))
    assert read == config
    assert list(read.rank_pattern) == list(config.rank_pattern)


def test_the_method_stands_first_in_json() -> None:
    assert next(iter(config_to_dict(LoraConfig()).items())) == ("peft_type", "LORA")


def test_what_peft_writes_is_read() -> None:
    read = config_from_dict(LoraConfig, json.loads(WRITTEN_BY_PEFT))
    assert read == LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, target_modules=["c_attn"])


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_a_feature_that_is_off_may_be_named_whatever_it_is(value: object) -> None:
    assert config_from_dict(LoraConfig, {"use_the_next_thing": value}) == LoraConfig()


@pytest.mark.parametrize("value", [True, 0, 1, "x", ["x"], {"a": None}])
def test_a_requested_feature_that_is_unknown_is_an_error(value: object) -> None:
    with pytest.raises(
        ConfigError, match="unknown settings of LoraConfig:\n  - use_the_next_thing ="
    ):
        config_from_dict(LoraConfig, {"use_the_next_thing": value})


def test_features_of_peft_that_are_not_supported_are_all_named_at_once() -> None:
    asked = json.loads(WRITTEN_BY_PEFT) | {"use_qalora": True, "qalora_group_size": 8}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LoraConfig, asked)
    assert "use_qalora = True" in str(caught.value)
    assert "qalora_group_size = 8" in str(caught.value)
    assert "megatron_core" not in str(caught.value)


ASKING: Mapping[str, object] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "corda_config": {"corda_method": "ipm"},
    "eva_config": {"rho": 2.0},
    "fan_in_fan_out": "yes",
    "kasa_config": {"beta": 1},
    "layer_replication": [[0, 4], [2, 5]],
    "loftq_config": {"loftq_bits": 4},
    "lora_ga_config": {"direction": "ArB2r"},
    "megatron_config": {"a": 1},
    "megatron_core": "megatron.other",
    "monteclora_config": {"a": 1},
    "qalora_group_size": 32,
    "target_parameters": ["experts.down_proj"],
    "use_bdlora": {"a": 1},
    "use_qalora": True,
    "velora_config": {"a": 1},
}


@pytest.mark.parametrize("key", ASKING)
def test_a_missing_feature_of_peft_is_refused_by_name(key: str) -> None:
    written = json.loads(WRITTEN_BY_PEFT)
    assert key in written
    with pytest.raises(ConfigError, match=rf"unknown settings of LoraConfig:\n  - {key} = "):
        config_from_dict(LoraConfig, written | {key: ASKING[key]})


def test_every_key_that_peft_writes_is_known_or_refused_where_it_asks() -> None:
    ours = {field.name for field in dataclasses.fields(LoraConfig)}
    noted = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type"}
    noted |= {"peft_version", "revision", "task_type"}
    assert json.loads(WRITTEN_BY_PEFT).keys() == ours | noted | ASKING.keys()


@pytest.mark.parametrize("value", [True, False])
def test_how_the_base_stores_its_weights_is_the_bases_business(value: bool) -> None:
    assert config_from_dict(LoraConfig, {"fan_in_fan_out": value}) == LoraConfig()


def test_an_unknown_key_comes_with_the_nearest_one_and_with_the_place() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LoraConfig, {"lora_alhpa": 16, "rang": 3}, "here.json: ")
    message = str(caught.value)
    assert message.startswith("here.json: unknown settings of LoraConfig:")
    assert "lora_alhpa = 16; did you mean 'lora_alpha' or" in message
    assert "rang = 3" in message


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"r": "8"}, "r: expected int, got '8'"),
        ({"r": 8.5}, "r: expected int, got 8.5"),
        ({"r": True}, "r: expected int, got True"),
        ({"use_rslora": 1}, "use_rslora: expected bool, got 1"),
        ({"target_modules": ["q", 3]}, "target_modules[1]: expected str, got int"),
        ({"rank_pattern": {"q": "4"}}, "rank_pattern[...]: expected int, got str"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_its_path(
    values: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LoraConfig, values, "here.json: ")
    assert str(caught.value) == f"here.json: invalid LoraConfig:\n  - {problem}"
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**cast("dict[str, Any]", values))
    assert str(caught.value) == f"invalid LoraConfig:\n  - {problem}"


@dataclass(frozen=True, kw_only=True)
class ChoosingConfig(PeftConfig):
    peft_type: ClassVar[str] = "CHOOSING"
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    size: int | Literal["small", "large"] | None = None


def test_a_choice_that_there_is_not_comes_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(ChoosingConfig, {"placement": "pfeifer", "size": "smal"}, "here.json: ")
    assert str(caught.value) == (
        "here.json: invalid ChoosingConfig:\n"
        "  - placement: expected one of houlsby, pfeiffer, got 'pfeifer'; "
        "did you mean 'pfeiffer'?\n"
        "  - size: expected one of small, large, got 'smal'; did you mean 'small'?"
    )
    host = Host()
    host.register(plugin(ChoosingConfig), "choosing")
    with pytest.raises(ConfigError, match=r"(?s)choosing: .*did you mean 'pfeiffer'"):
        parse_method("choosing:placement=pfeifer", host)
    chosen = parse_method("choosing:placement=houlsby,size=3", host)
    assert chosen == ChoosingConfig(placement="houlsby", size=3)


def test_a_choice_of_another_type_is_an_error_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"here.json: (?s:.*)placement: .*3"):
        config_from_dict(ChoosingConfig, {"placement": 3}, "here.json: ")


def test_a_value_that_cannot_be_is_an_error_with_the_place() -> None:
    with pytest.raises(ConfigError, match=r"here\.json: invalid LoraConfig:\n  - the rank r=0"):
        config_from_dict(LoraConfig, {"r": 0}, "here.json: ")


# ---------- the command line ----------


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("lora", LoraConfig()),
        ("LoRA:", LoraConfig()),
        ("lora:r=4", LoraConfig(r=4)),
        (
            "lora:r=4,lora_alpha=16,target_modules=query+value",
            LoraConfig(r=4, lora_alpha=16, target_modules=["query", "value"]),
        ),
        ("lora: r = 4 , use_rslora = true", LoraConfig(r=4, use_rslora=True)),
        ("lora:use_rslora=False", LoraConfig(use_rslora=False)),
        ("lora:target_modules=all-linear", LoraConfig(target_modules="all-linear")),
        ("lora:target_modules=query", LoraConfig(target_modules=["query"])),
        ("lora:layers_to_transform=1", LoraConfig(layers_to_transform=[1])),
        ("lora:layers_to_transform=0+2", LoraConfig(layers_to_transform=[0, 2])),
        ("lora:init_lora_weights=gaussian", LoraConfig(init_lora_weights="gaussian")),
        ("lora:init_lora_weights=false", LoraConfig(init_lora_weights=False)),
        ("lora:init_lora_weights=pissa_niter_4", LoraConfig(init_lora_weights="pissa_niter_4")),
        ("lora:use_dora=1,lora_dropout=1e-1", LoraConfig(use_dora=True, lora_dropout=0.1)),
        ("lora:trainable_token_indices=3+7", LoraConfig(trainable_token_indices=[3, 7])),
        ("lora:trainable_token_indices=7", LoraConfig(trainable_token_indices=[7])),
        (
            'lora:{"trainable_token_indices": {"wte": [7]}}',
            LoraConfig(trainable_token_indices={"wte": [7]}),
        ),
        ('lora:{"r": 4, "rank_pattern": {"q,v": 2}}', LoraConfig(r=4, rank_pattern={"q,v": 2})),
        ('lora: {"target_modules": ".*[qv]"}', LoraConfig(target_modules=".*[qv]")),
        ("shift:start=0.5,modules_to_save=a+b", ShiftConfig(start=0.5, modules_to_save=["a", "b"])),
    ],
)
def test_a_method_is_read_from_the_command_line(text: str, config: PeftConfig) -> None:
    assert parse_method(text, HOST) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lroa:r=4", "unknown method 'lroa'; did you mean 'lora'?"),
        ("", "unknown method '' (there are: lora, shift)"),
        ("adalora9000", "unknown method 'adalora9000'"),
        ("lora:r", "lora: expected KEY=VALUE, got 'r'"),
        ("lora:rank=4", "lora: unknown settings:\n  - rank"),
        ("lora:lora_alhpa=4,usersl=1", "lora_alhpa; did you mean 'lora_alpha' or"),
        (
            "lora:bias=lora",
            "lora: invalid LoraConfig:\n  - bias: expected one of none, all, lora_only, got 'lora'",
        ),
        (
            "lora:bias=lora_onyl",
            "of none, all, lora_only, got 'lora_onyl'; did you mean",
        ),
        ("lora:r=four", "lora: invalid LoraConfig:\n  - r: expected int, got 'four'"),
        ("lora:r=true", "r: expected int, got True"),
        ("lora:r=", "r: expected int, got ''"),
        ("lora:r=0", "lora: invalid LoraConfig:\n  - the rank r=0"),
        ("lora:r=4,r=8", "lora: r is set twice"),
        ("lora:{r=4}", "lora: invalid JSON: "),
        ("lora:{} 3", "lora: invalid JSON: "),
        ('lora:{"rr": 4}', "unknown settings of LoraConfig:\n  - rr = 4"),
    ],
)
def test_a_wrong_method_on_the_command_line_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_method(text, HOST)
    assert message in str(caught.value)


def test_the_message_says_that_no_plugin_is_installed() -> None:
    with pytest.raises(ConfigError, match=r"\(no plugin is installed\)"):
        parse_method("lora", Host())


def test_a_setting_that_a_class_does_not_have_is_named_with_those_that_it_has() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(lora_alhpa=3)  # type: ignore[call-arg]
    lines = str(caught.value).splitlines()
    assert lines[0] == "unknown settings of LoraConfig:"
    assert lines[1].startswith("  - lora_alhpa = 3; did you mean 'lora_alpha'")
    assert lines[2].startswith("LoraConfig has modules_to_save, target_modules, ")
    assert copy.deepcopy(LoraConfig(r=3)) == LoraConfig(r=3)
