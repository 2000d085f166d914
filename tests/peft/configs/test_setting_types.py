"""Settings are checked when a config is made, and not when it is saved."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from tests.peft.small import lora_host, plugin, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft import PeftConfig, config_from_dict, get_peft_model, parse_method
from tinygrad_peft_lora import LoraConfig


@dataclass(frozen=True, kw_only=True)
class AllKindsConfig(PeftConfig):
    peft_type: ClassVar[str] = "ALL_KINDS"
    count: int = 1
    share: float = 0.5
    either: int | float = 1
    on: bool = False
    name: str | None = None
    choice: Literal["a", "b"] = "a"
    names: Sequence[str] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    pairs: Sequence[tuple[int, float]] = ()
    anything: Any = None


@dataclass(frozen=True, kw_only=True)
class AlienConfig(PeftConfig):
    peft_type: ClassVar[str] = "ALIEN"
    start: Callable[[], int] = int
    turn: complex = 1j
    weights: Array | None = None
    r: int = 1


@dataclass(frozen=True, kw_only=True)
class LateConfig(PeftConfig):
    peft_type: ClassVar[str] = "LATE"
    count: "int" = 1


@dataclass(frozen=True, kw_only=True)
class NeededConfig(PeftConfig):
    peft_type: ClassVar[str] = "NEEDED"
    size: int
    name: str


def problems(kind: Callable[..., PeftConfig], **settings: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    head, *lines = str(caught.value).splitlines()
    assert head == f"invalid {getattr(kind, '__name__', kind)}:"
    return [line.removeprefix("  - ") for line in lines]


def test_values_of_the_right_kind_are_taken() -> None:
    config = AllKindsConfig(
        count=np.int64(3),  # type: ignore[arg-type]
        share=1,
        either=1.5,
        names=["x"],
        shares={"a": 1},
        pairs=[(1, 2.0)],
        anything={"x": [1, None]},
    )
    assert config_from_dict(AllKindsConfig, {"count": 3, "pairs": [[1, 2.0]]}).count == config.count


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"count": "4"}, "count: expected int, got '4'"),
        ({"count": None}, "count: expected int, got None"),
        ({"count": 1.0}, "count: expected int, got 1.0"),
        ({"count": True}, "count: expected int, got True"),
        ({"on": 1}, "on: expected bool, got 1"),
        ({"name": 3}, "name: expected str or None, got 3"),
        ({"names": "query"}, "names: expected list, got 'query'"),
        ({"names": [3]}, "names[0]: expected str, got int"),
        ({"shares": [1.0]}, "shares: expected dict, got (1.0,)"),
        ({"shares": {"a": "b"}}, "shares[...]: expected float, got str"),
        ({"pairs": [(1,)]}, "pairs[0]: expected array of length 2, got 1"),
        ({"choice": "c"}, "choice: expected one of a, b, got 'c'"),
        ({"share": math.nan}, "share: expected a finite number, got nan"),
        ({"shares": {"a": math.inf}}, "shares['a']: expected a finite number, got inf"),
        ({"pairs": [(1, -math.inf)]}, "pairs[0][1]: expected a finite number, got -inf"),
        ({"anything": {"x": [math.nan]}}, "anything['x'][0]: expected a finite number, got nan"),
        ({"anything": object}, "anything: Encoding objects of type type is unsupported"),
        ({"modules_to_save": "head"}, "modules_to_save: expected list, got 'head'"),
    ],
)
def test_other_values_are_refused_by_the_settings_name(
    settings: dict[str, Any], problem: str
) -> None:
    assert problems(AllKindsConfig, **settings) == [problem]


def test_all_values_of_wrong_types_are_refused_at_once() -> None:
    assert problems(LoraConfig, r="4", target_modules=[3], lora_alpha=math.inf, bias="some") == [
        "target_modules[0]: expected str, got int",
        "r: expected int, got '4'",
        "lora_alpha: expected a finite number, got inf",
        "bias: expected one of none, all, lora_only, got 'some'; did you mean 'none'?",
    ]


def test_a_wrong_choice_is_listed_with_the_wrong_values() -> None:
    assert problems(LoraConfig, r=0, bias="some") == [
        "bias: expected one of none, all, lora_only, got 'some'; did you mean 'none'?",
        "the rank r=0 must be at least 1",
    ]


def test_types_that_json_cannot_hold_are_refused_when_the_first_config_is_made() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            AlienConfig()
        lines = str(caught.value).splitlines()
        assert lines[0] == "invalid class AlienConfig:"
        assert [line.split(":")[0] for line in lines[1:]] == [
            "  - start",
            "  - turn",
            "  - weights",
        ]
        assert "JSON cannot hold <class 'complex'>" in lines[2]


def test_annotations_may_be_texts() -> None:
    assert LateConfig(count=3).count == 3
    assert problems(LateConfig, count="3") == ["count: expected int, got '3'"]


def test_settings_without_a_default_are_missed_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(NeededConfig, {"peft_type": "NEEDED"}, "here: ")
    assert str(caught.value) == "here: invalid NeededConfig:\n  - size: missing\n  - name: missing"
    host = lora_host()
    host.register(plugin(NeededConfig), "needed")
    assert parse_method("needed:size=3,name=a", host) == NeededConfig(size=3, name="a")


def test_what_can_be_made_can_be_saved_and_read(tmp_path: Path) -> None:
    peft = get_peft_model(small(), LoraConfig(alpha_pattern={"q_proj": 1e308}), host=lora_host())
    peft.save_pretrained(tmp_path)
    assert "Infinity" not in (tmp_path / "adapter_config.json").read_text()


def test_a_class_of_alien_settings_does_not_affect_other_plugins() -> None:
    host = lora_host()
    host.register(plugin(AlienConfig), "alien")
    assert parse_method("lora", host) == LoraConfig()
    with pytest.raises(ConfigError, match="AlienConfig"):
        parse_method("alien", host)
