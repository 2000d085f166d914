"""Recipes as compare's command line names them."""

import pytest

from tinygrad_peft.cli.contenders import parse_contenders
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.peft import Host
from tinygrad_peft.train import Contender
from tinygrad_peft_lora import LoraConfig

HOST = Host.installed()


def parsed(*specs: str) -> list[Contender]:
    return parse_contenders(specs, HOST)


def labels(*specs: str) -> list[str]:
    return [contender.label for contender in parsed(*specs)]


# ---------- what a recipe is ----------


def test_a_recipe_is_a_method_as_everywhere() -> None:
    [contender] = parsed("lora:r=4,target_modules=query+value")
    assert contender.recipe == (LoraConfig(r=4, target_modules=["query", "value"]),)
    assert (contender.label, contender.lr) == ("lora", None)


def test_a_plus_between_spaces_composes_and_one_within_a_list_does_not() -> None:
    [contender] = parsed("lora:r=4,target_modules=query+value  +  ia3:target_modules=key+value")
    assert [config.peft_type for config in contender.recipe] == ["LORA", "IA3"]
    assert contender.label == "lora + ia3"


def test_after_an_at_sign_stand_a_rate_and_a_label() -> None:
    [contender] = parsed("lora:r=4 + ia3 @ lr=2e-3, label=both of them")
    assert (contender.lr, contender.label) == (2e-3, "both of them")
    [contender] = parsed("lora:r=4 @ label=a @ b = c")
    assert contender.label == "a @ b = c"


def test_what_stands_in_json_separates_nothing() -> None:
    pattern = r"(a + b)| @ |.*\.query"
    [contender] = parsed(
        'lora:{"target_modules": "(a + b)| @ |.*\\\\.query"} + lora:{"r": 2} @ lr=0.1'
    )
    assert contender.recipe == (LoraConfig(target_modules=pattern), LoraConfig(r=2))
    assert contender.lr == 0.1


# ---------- labels ----------


def test_a_label_is_the_methods_names_as_long_as_they_tell_apart() -> None:
    assert labels("lora:r=4", "ia3", "lora + ia3") == ["lora", "ia3", "lora + ia3"]


def test_recipes_of_the_same_methods_are_told_apart_by_their_settings() -> None:
    assert labels("lora:r=4,lora_alpha=16", "lora:r=16,lora_alpha=16") == ["lora r=4", "lora r=16"]
    assert labels("lora:target_modules=query+key", "lora:target_modules=all-linear") == [
        "lora target_modules=query+key",
        "lora target_modules=all-linear",
    ]
    assert labels("lora + ia3", "lora:r=2 + ia3") == ["lora r=8 + ia3", "lora r=2 + ia3"]


def test_recipes_of_the_same_settings_are_told_apart_by_their_rates() -> None:
    assert labels("lora @ lr=1e-3", "lora @ lr=0.01") == ["lora lr=0.001", "lora lr=0.01"]
    assert labels("lora", "lora @ lr=0.01") == ["lora", "lora lr=0.01"]
    assert labels("lora:r=2", "lora:r=4 @ lr=0.01") == ["lora r=2", "lora r=4"]


def test_a_label_that_is_given_takes_no_part_in_telling_apart() -> None:
    assert labels("lora", "lora:r=2 @ label=small") == ["lora", "small"]


# ---------- what is wrong ----------


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("lorra:r=8", "no method is called 'lorra'; did you mean 'lora'"),
        ("lora + lorra", "no method is called 'lorra'; did you mean 'lora'"),
        ("lora +", "no method is called 'lora +'"),
        ("", "no method is called ''"),
        (" + lora", "no method is called ''"),
        ("lora:rr=8", "unknown settings:\n  - rr; did you mean 'r'"),
        ('lora:{"r": 8', "lora: not JSON: "),
        ("lora @ lr=fast", "lr: expected a number, got 'fast'"),
        ("lora @ rl=1", "unknown after the @:\n  - rl; did you mean 'lr'"),
        ("lora @ 1e-3", "after the @: expected lr=RATE or label=NAME, got '1e-3'"),
        ("lora @ label=", "the label after the @ is empty"),
        ("lora @ lr=1,lr=2", "lr is set twice after the @"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_text(spec: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("lora", spec)
    assert str(caught.value).startswith(f"--method {spec!r}: ")
    assert told in str(caught.value)


def test_all_recipes_that_are_wrong_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("lora:r=0", "lora", "ia4")
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()][::2] == [
        "--method 'lora:r=0'",
        "--method 'ia4'",
    ]


def test_two_recipes_that_nothing_tells_apart_are_refused() -> None:
    told = "two recipes are called 'lora': give one another label, as in --method '... @ label=NAME"
    for specs in (("lora", "lora"), ("lora", "ia3 @ label=lora")):
        with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
            parsed(*specs)
