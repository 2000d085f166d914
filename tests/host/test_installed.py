import importlib
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peft.small import LLAMA, small
from tinygrad_peft.errors import PluginError
from tinygrad_peft.host import Host, PluginInfo, leaving_out
from tinygrad_peft.peft import Draft, hookspecs, methods_of
from tinygrad_peft_lora import LoraConfig


def draft() -> Draft:
    return Draft(small(LLAMA), (), ())


Install = Callable[..., None]

GOOD = """
from tinygrad_peft.peft import hookimpl, hookspecs

@hookimpl(hookspecs.check_recipe)
def check_recipe(draft):
    return ["{name} objects"]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs distributions of one module each, and hides those of the environment."""
    # The standard library stays, since importlib.metadata imports parts of it when they are needed.
    library = sysconfig.get_path("stdlib")
    monkeypatch.setattr(sys, "path", [str(tmp_path), library, f"{library}/lib-dynload"])
    monkeypatch.delenv("TINYGRAD_PEFT_WITHOUT", raising=False)
    importlib.invalidate_caches()

    def write(distribution: str, entry_points: str, **modules: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[tinygrad_peft]\n{entry_points}\n")
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def test_nothing_installed_is_an_empty_host(install: Install) -> None:
    assert Host.installed().plugins() == ()


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install: Install) -> None:
    install("quiet-critic", "critic = fake_critic", fake_critic=GOOD)
    host = Host.installed()
    (info,) = host.plugins()
    assert (info.name, info.distribution, info.version) == ("critic", "quiet-critic", "1.2")
    assert host.each(hookspecs.check_recipe, draft()) == [["{name} objects"]]


def test_installed_plugins_stand_in_the_order_of_their_names(install: Install) -> None:
    # Found in the order of folders, which differs from machine to machine.
    for name in ("zeta", "alpha", "midway"):
        install(
            f"dist-{name}",
            f"{name} = fake_{name}",
            **{f"fake_{name}": GOOD.replace("{name}", name)},
        )
    answers = Host.installed().each(hookspecs.check_recipe, draft())
    assert answers == [["alpha objects"], ["midway objects"], ["zeta objects"]]


# ---------- broken plugins ----------

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from tinygrad_peft.peft import PeftConfig, hookimpl, hookspecs

@dataclass(frozen=True, kw_only=True)
class Config(PeftConfig):
    peft_type: ClassVar[str] = "{name}"

@hookimpl(hookspecs.peft_methods)
def peft_methods():
    return [Config]
"""


def broken(host: Host) -> PluginInfo:
    """The one broken plugin, beside which all others answer."""
    assert host.each(hookspecs.check_recipe, draft()) == [["good objects"]]
    (info,) = [info for info in host.plugins() if info.error]
    return info


@pytest.fixture
def good(install: Install) -> None:
    install("good-dist", "good = fake_good", fake_good=GOOD.replace("{name}", "good"))


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("fake_broken", "raise RuntimeError('half written')", "RuntimeError: half written"),
        ("fake_broken", "import no_such_dependency", "ModuleNotFoundError: No module named 'no_"),
        ("fake_broken", "def (:", "SyntaxError"),
        ("fake_broken", "raise SystemExit(3)", "SystemExit: 3"),
        ("fake_missing", "", "ModuleNotFoundError: No module named 'fake_missing'"),
        ("fake_broken:plugin", "other = 1", "AttributeError"),
        (
            "fake_broken",
            GOOD.replace("check_recipe)", "chek_recipe)"),
            "AttributeError: module 'tinygrad_peft.peft.hookspecs' has no attribute 'chek_recipe'",
        ),
        (
            "fake_broken",
            GOOD.replace("@hookimpl(hookspecs.check_recipe)", "@hookimpl"),
            "PluginError: check_recipe: expected the declaration of a hook",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_listed_and_stops_no_other(
    install: Install, target: str, source: str, reason: str
) -> None:
    install("bad-dist", f"bad = {target}", fake_broken=source)
    info = broken(Host.installed())
    assert (info.name, info.distribution, info.version) == ("bad", "bad-dist", "1.2")
    start = f"plugin 'bad' of bad-dist 1.2 ({target}) cannot be imported: "
    assert info.error.startswith(start + reason)


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "expected a function marked by hookimpl, got none"),
        (GOOD.replace("(draft)", "(recipe)"), "check_recipe: expected (draft) without defaults"),
        (
            METHOD.replace("{name}", "../up"),
            "Config: expected a peft_type of letters, digits and _",
        ),
    ],
)
def test_a_plugin_that_does_not_fit_is_listed_and_stops_no_other(
    install: Install, source: str, reason: str
) -> None:
    install("bad-dist", "bad = fake_broken", fake_broken=source)
    info = broken(Host.installed())
    assert info.title == "plugin 'bad' of bad-dist 1.2"
    assert info.error.startswith("plugin 'bad' of bad-dist 1.2")
    assert reason in info.error


@pytest.mark.usefixtures("good")
def test_a_class_behind_an_entry_point_is_listed_as_broken(install: Install) -> None:
    install("class-dist", "kind = fake_kind:Kind", fake_kind="class Kind: pass")
    assert "'kind' of class-dist 1.2: expected a module" in broken(Host.installed()).error


@pytest.mark.usefixtures("good")
def test_a_name_that_two_distributions_claim_belongs_to_neither(install: Install) -> None:
    install("honest-lora", "lora = fake_one", fake_one=METHOD.replace("{name}", "one"))
    install("aaa-lora", "lora = fake_two", fake_two=METHOD.replace("{name}", "two"))
    host = Host.installed()
    assert methods_of(host) == {}
    assert broken(host).error == (
        "entry point 'lora': expected one distribution, got aaa-lora (fake_two) and "
        "honest-lora (fake_one): uninstall one"
    )


@pytest.mark.usefixtures("good")
def test_one_distribution_that_claims_a_name_twice_is_named(install: Install) -> None:
    install(
        "double", "lora = fake_one\n[tinygrad_peft]\nlora = fake_two", fake_one=GOOD, fake_two=GOOD
    )
    assert "got double (fake_one) and double (fake_two)" in broken(Host.installed()).error


def test_a_method_that_two_plugins_provide_belongs_to_neither(install: Install) -> None:
    for name in ("first", "second"):
        module = {f"fake_{name}": METHOD.replace("{name}", "RANKED")}
        install(f"dist-{name}", f"{name} = fake_{name}", **module)
    install("dist-other", "other = fake_other", fake_other=METHOD.replace("{name}", "OTHER"))
    host = Host.installed()
    assert list(methods_of(host)) == ["other"]
    assert [info.error for info in host.plugins()] == [
        (
            "plugin 'first' of dist-first 1.2 provides names that are taken:\n"
            "  - peft_methods: 'ranked' is provided by plugin 'second' of dist-second 1.2 too"
        ),
        "",
        (
            "plugin 'second' of dist-second 1.2 provides names that are taken:\n"
            "  - peft_methods: 'ranked' is provided by plugin 'first' of dist-first 1.2 too"
        ),
    ]
    (_, chosen) = [i for i in Host.installed(without=["first"]).plugins() if i.name != "other"]
    assert chosen.error == ""


def test_one_module_behind_two_names_is_used_once(install: Install) -> None:
    install("twice", "a = fake_one\nb = fake_one", fake_one=GOOD)
    host = Host.installed()
    assert host.each(hookspecs.check_recipe, draft()) == [["{name} objects"]]
    assert [info.error for info in host.plugins()] == [
        "",
        "plugin 'b' of twice 1.2 is already registered, as 'a'",
    ]


def test_one_text_is_not_a_list_of_names_to_leave_out() -> None:
    with pytest.raises(PluginError, match="without: expected a list of names, got 'vera'"):
        Host.installed(without="vera")


def test_an_exception_in_a_hook_names_the_distribution(install: Install) -> None:
    source = GOOD.replace("    return", "    draft.no_such_field; return")
    install("weak-dist", "weak = fake_weak", fake_weak=source)
    host = Host.installed()
    with pytest.raises(PluginError) as caught:
        host.each(hookspecs.check_recipe, draft())
    assert str(caught.value) == (
        "plugin 'weak' of weak-dist 1.2, hook check_recipe: "
        "AttributeError: 'Draft' object has no attribute 'no_such_field'"
    )


# ---------- plugins that are left out ----------


@pytest.fixture
def three(install: Install) -> None:
    for name in ("alpha", "beta", "gamma"):
        source = GOOD.replace("{name}", name)
        install(f"dist-{name}", f"{name} = fake_{name}", **{f"fake_{name}": source})


@pytest.mark.usefixtures("three")
def test_plugins_are_left_out_by_name() -> None:
    host = Host.installed(without=["beta", "alpha"])
    assert host.each(hookspecs.check_recipe, draft()) == [["gamma objects"]]
    assert [(i.name, i.error) for i in host.plugins()] == [
        ("alpha", "switched off"),
        ("beta", "switched off"),
        ("gamma", ""),
    ]


@pytest.mark.usefixtures("three")
def test_the_environment_leaves_plugins_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGRAD_PEFT_WITHOUT", "alpha, gamma,")
    assert Host.installed().each(hookspecs.check_recipe, draft()) == [["beta objects"]]
    assert Host.installed(without=["beta"]).each(hookspecs.check_recipe, draft()) == []


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("before", [None, "alpha"])
def test_plugins_are_left_out_for_a_while(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv("TINYGRAD_PEFT_WITHOUT", before)
    with leaving_out(["beta"]):
        left = [info.name for info in Host.installed().plugins() if not info.error]
        assert left == (["gamma"] if before else ["alpha", "gamma"])
    assert os.environ.get("TINYGRAD_PEFT_WITHOUT") == before


@pytest.mark.usefixtures("three")
def test_an_unknown_name_to_leave_out_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        Host.installed(without=["bta", "zzz", "gamma"])
    assert str(caught.value) == (
        "cannot switch off plugins that are not installed:\n"
        "  - 'bta'; did you mean 'beta'?\n"
        "  - 'zzz'"
    )


def test_a_plugin_that_is_left_out_is_not_imported(install: Install) -> None:
    install("bad-dist", "bad = fake_broken", fake_broken="raise RuntimeError")
    assert [info.error for info in Host.installed(without=["bad"]).plugins()] == ["switched off"]
    assert "fake_broken" not in sys.modules


# ---------- the environment's own ----------


def test_the_methods_of_the_environment_are_found_with_their_distributions() -> None:
    host = Host.installed()
    found = {info.name: info for info in host.plugins()}
    assert found["lora"].distribution == "tinygrad-peft"
    assert methods_of(host)["lora"] is LoraConfig


@pytest.mark.parametrize("name", ["bitfit", "loreft"])
def test_a_third_partys_method_is_found_as_the_built_in_ones_are(name: str) -> None:
    pytest.importorskip(f"tinygrad_peft_{name}")
    host = Host.installed()
    found = {info.name: info for info in host.plugins()}
    assert (found[name].distribution, found[name].version) == (f"tinygrad-peft-{name}", "0.1.0")
    assert list(methods_of(host)) == sorted({name, *methods_of(host)})
