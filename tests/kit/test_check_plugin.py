import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tinygrad_peft.errors import ConfigError, MissingExtraError, PluginError
from tinygrad_peft.kit import Outcome, PluginCheck, check_plugin
from tinygrad_peft.kit import check_plugin as kit_check
from tinygrad_peft.kit.trial import suite_of

Install = Callable[[str], None]

PLUGIN = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinygrad_peft import Module, Parameter, Tensor, peft
from tinygrad_peft.nn import Affine
from tinygrad_peft.peft import hookimpl, hookspecs


@dataclass(frozen=True, kw_only=True)
class OddConfig(peft.TargetedConfig):
    peft_type: ClassVar[str] = "ODD"
    usual_targets: ClassVar = {"bert": ("value",)}
    revision: str = "main"


@dataclass(frozen=True, kw_only=True)
class AlienConfig(peft.PeftConfig):
    peft_type: ClassVar[str] = "ALIEN"
    number: complex = 1j


class OddLinear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.b = Parameter(init.zeros(base.out_features))

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.b.detach()


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[peft.PeftConfig]]:
    return [OddConfig, AlienConfig]


@hookimpl(hookspecs.adapt_module, OddConfig)
def adapt_module(config: OddConfig, site: peft.Site) -> Module | None:
    return OddLinear(site.module, site.init) if site.is_target else None


def count_parameters(config, shape):
    return None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make an installed distribution of a plugin's source, and switch all others off."""

    def make(source: str) -> None:
        (tmp_path / "odd_plugin.py").write_text(source, "utf-8")
        info = tmp_path / "odd_distribution-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: odd-distribution\nVersion: 1.2\n", "utf-8"
        )
        (info / "entry_points.txt").write_text("[tinygrad_peft]\nodd = odd_plugin\n", "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
        monkeypatch.delitem(sys.modules, "odd_plugin", raising=False)
        others = "adapter,bitfit,ia3,ln_tuning,lora,prefix,prompt,qlora,vera"
        monkeypatch.setenv("TINYGRAD_PEFT_WITHOUT", others)

    return make


def only(checks: Sequence[PluginCheck]) -> PluginCheck:
    (check,) = checks
    return check


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd", "odd-distribution", "odd_plugin"])
def test_everything_wrong_with_a_plugin_is_listed(install: Install, name: str) -> None:
    install(PLUGIN)
    check = only(check_plugin(name))
    assert (check.plugin.name, check.plugin.version, check.sound) == ("odd", "1.2", False)
    assert check.problems == (
        "count_parameters: a hook's name, and not marked: @hookimpl(hookspecs.count_parameters)",
    )
    odd, alien = check.methods
    assert odd.problems == (
        "setting revision: a name that PEFT's files have for themselves",
        "no count_parameters: `count` cannot tell its parameters",
    )
    assert odd.remarks == ("no merge_module: it cannot be merged",)
    promises = {outcome.promise: outcome for outcome in odd.promises}
    learns = promises["all_that_it_trains_learns"]
    assert (learns.kept, learns.skipped, learns.broken) == (0, 0, 1)
    assert "nothing to differentiate" in learns.notes[0]
    assert promises["starts_as_the_base"] == Outcome("starts_as_the_base", 1, 0, 0, ())
    merged = promises["merged_equals_unmerged"]
    assert (merged.kept, merged.skipped, merged.broken) == (0, 1, 0)
    assert "not promised: mergeable" in merged.notes[0]
    assert alien.promises == ()
    assert "number: JSON cannot hold" in alien.problems[-1]


def test_a_plugin_that_cannot_be_imported_is_reported(install: Install) -> None:
    install("import no_such_module")
    check = only(check_plugin("odd"))
    assert not check.sound
    assert "No module named 'no_such_module'" in check.problems[0]
    assert check.methods == ()


@pytest.mark.slow
def test_a_sound_plugin_keeps_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    others = "adapter,ia3,ln_tuning,lora,prefix,prompt,qlora,vera"
    monkeypatch.setenv("TINYGRAD_PEFT_WITHOUT", others)
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    check = only(check_plugin("bitfit", ["bitfit:target_modules=query+value"]))
    assert check.sound
    (method,) = check.methods
    assert not method.problems
    assert sum(outcome.kept for outcome in method.promises) > 30


def test_unknown_names_are_refused() -> None:
    with pytest.raises(PluginError, match=r"no plugin is called 'bitfti'; did you mean 'bitfit'"):
        check_plugin("bitfti")
    with pytest.raises(PluginError, match=r"bitfit does not provide 'lora'"):
        check_plugin("bitfit", ["lora:r=2"])


def test_unknown_settings_are_refused_before_the_suite_runs() -> None:
    with pytest.raises(ConfigError, match="bitfit: unknown setting"):
        check_plugin("bitfit", ["bitfit:nope=3"])


@pytest.mark.parametrize(("failure", "promised"), [("KeyError", True), ("TargetError", False)])
def test_a_family_that_a_method_fails_on_is_tested_and_one_that_it_refuses_is_not(
    install: Install, failure: str, promised: bool
) -> None:
    raising = f"""
    from tinygrad_peft.errors import TargetError
    if site.slot == "qkv_proj":
        raise {failure}("gpt2")
    return OddLinear"""
    source = PLUGIN.replace("[OddConfig, AlienConfig]", "[OddConfig]")
    source = source.replace('{"bert": ("value",)}', '{"bert": ("value",), "gpt2": ("c_attn",)}')
    install(source.replace("\n    return OddLinear", raising))
    suite = suite_of("odd")
    assert ("gpt2" in suite.models) is promised
    assert "bert" in suite.models
    assert "llama" not in suite.models


def test_the_check_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[kit_check.__module__]
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinygrad-peft\[test\]'"):
        check_plugin("bitfit")
