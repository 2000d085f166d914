import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pluggy
import pytest

import tinygrad_peft_lora.plugin
from tests.peft.small import LLAMA, ShiftConfig, lora_host, plugin, shift, small
from tinygrad_peft.errors import PluginError
from tinygrad_peft.nn import Init, Linear, Module
from tinygrad_peft.peft import (
    Applied,
    Draft,
    Host,
    PeftConfig,
    Site,
    hookimpl,
    hookspecs,
)
from tinygrad_peft_lora import LoraConfig

raw_mark = pluggy.HookimplMarker("tinygrad_peft")

SITE = Site(
    "layer", "layer", Linear(2, 2, init=Init()), 0, is_target=True, init=Init(), model=Linear(2, 2)
)


def draft() -> Draft:
    return Draft(small(LLAMA), (), ())


def silent(site: Site, config: PeftConfig) -> Module | None:
    return None


def unchanged(site: Site, config: PeftConfig) -> Module | None:
    return site.module


def greedy(site: Site, config: PeftConfig) -> Module | None:
    return Linear(2, 2)


def objecting(*reasons: str) -> object:
    def check_recipe(draft: Draft) -> Sequence[str]:
        return reasons

    return SimpleNamespace(check_recipe=hookimpl(hookspecs.check_recipe)(check_recipe))


def test_an_empty_host_has_no_methods_and_no_answers() -> None:
    host = Host()
    assert host.methods() == {}
    assert host.plugins() == ()
    assert host.each(hookspecs.check_recipe, draft()) == []
    assert host.one(hookspecs.adapt_module, SITE, LoraConfig()) is None


def test_each_gives_the_answers_in_the_order_of_registration() -> None:
    host = Host()
    for name in ("c", "a", "b"):
        host.register(objecting(name), name)
    assert host.each(hookspecs.check_recipe, draft()) == [("c",), ("a",), ("b",)]


def test_each_leaves_out_the_plugins_that_answer_none() -> None:
    host = Host()
    host.register(plugin(adapt=silent), "silent")
    host.register(plugin(adapt=unchanged), "speaking")
    assert host.each(hookspecs.adapt_module, SITE, LoraConfig()) == [SITE.module]


def test_one_gives_the_answer_of_the_only_plugin_that_has_one() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    answer = host.one(hookspecs.adapt_module, SITE, ShiftConfig(target_modules=["layer"]))
    assert type(answer).__name__ == "ShiftLinear"


def test_arguments_may_be_given_by_name() -> None:
    host = lora_host()
    by_name = host.one(hookspecs.adapt_module, config=LoraConfig(r=2), site=SITE)
    by_place = host.one(hookspecs.adapt_module, SITE, LoraConfig(r=2))
    assert type(by_name) is type(by_place) is not type(None)


def test_a_call_with_wrong_arguments_is_an_error_whether_or_not_a_plugin_is_there() -> None:
    for host in (Host(), lora_host()):
        with pytest.raises(TypeError, match="config"):
            host.one(hookspecs.adapt_module, SITE)  # type: ignore[call-arg]


def test_two_plugins_that_answer_one_site_are_both_named_with_the_site() -> None:
    host = Host()
    for name in ("northern", "southern"):
        host.register(plugin(adapt=greedy), name)
    with pytest.raises(PluginError, match="adapt_module: only one") as caught:
        host.one(hookspecs.adapt_module, SITE, LoraConfig())
    assert "northern and southern" in str(caught.value)
    assert "path='layer'" in str(caught.value)


def test_plugins_that_stay_silent_are_not_named_among_the_rivals() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    host.register(plugin(adapt=greedy), "greedy")
    with pytest.raises(PluginError, match="greedy and lora do"):
        host.one(hookspecs.adapt_module, SITE, LoraConfig())


# ---------- what register refuses ----------


def assert_is_empty(host: Host) -> None:
    """No answer and no name of a refused plugin is left; a proper one can still be added."""
    assert host.plugins() == ()
    assert host.each(hookspecs.check_recipe, draft()) == []
    host.register(tinygrad_peft_lora.plugin, "refused")
    assert list(host.methods()) == ["lora"]


def refused(made: object, match: str) -> None:
    host = Host()
    with pytest.raises(PluginError, match=f"(?s){match}") as caught:
        host.register(made, "refused")
    assert "'refused'" in str(caught.value)
    assert_is_empty(host)


def test_a_misspelt_hook_is_refused_with_the_nearest_one() -> None:
    def adapt_modul(site: Site, config: PeftConfig) -> Module | None:
        return None

    good = objecting("kept").check_recipe  # type: ignore[attr-defined]
    refused(
        SimpleNamespace(check_recipe=good, adapt_modul=raw_mark(adapt_modul)),
        r"unknown hook 'adapt_modul'.*did you mean 'adapt_module'\?",
    )


def test_a_misspelt_name_of_a_hook_is_refused_whatever_the_functions_name() -> None:
    def anything(site: Site, config: PeftConfig) -> Module | None:
        return None

    made = SimpleNamespace(anything=raw_mark(anything, specname="merge_modules"))
    refused(made, r"merge_modules.*did you mean 'merge_module'\?")


def test_an_optional_hook_is_refused_when_nobody_declares_it() -> None:
    def adapt_modul(site: Site, config: PeftConfig) -> Module | None:
        return None

    made = SimpleNamespace(adapt_modul=raw_mark(adapt_modul, optionalhook=True))
    refused(made, r"adapt_modul.*did you mean 'adapt_module'\?")


def test_a_hook_that_takes_another_argument_is_refused() -> None:
    def adapt_module(site: Site, settings: PeftConfig) -> Module | None:
        return None

    refused(SimpleNamespace(adapt_module=raw_mark(adapt_module)), "settings")


def test_a_hook_whose_argument_has_a_default_is_refused() -> None:
    # pluggy 1.6 leaves such an argument at its default, and 1.7 fills it.
    def adapt_module(site: Site, config: PeftConfig = LoraConfig()) -> Module | None:  # noqa: B008
        return None

    made = SimpleNamespace(adapt_module=hookimpl(hookspecs.adapt_module)(adapt_module))
    refused(made, "adapt_module.*config.*default")


def test_a_hook_that_takes_an_argument_by_name_alone_is_refused() -> None:
    def adapt_module(site: Site, *, config: PeftConfig) -> Module | None:
        return None

    refused(SimpleNamespace(adapt_module=raw_mark(adapt_module)), "adapt_module.*config")


def test_a_hook_that_leaves_an_argument_out_is_refused() -> None:
    def adapt_module(site: Site) -> Module | None:
        return None

    refused(
        SimpleNamespace(adapt_module=raw_mark(adapt_module)), r"adapt_module takes \(site, config\)"
    )


@pytest.mark.parametrize(
    ("mark", "option"),
    [
        (pluggy.HookimplMarker("tinygrad_peft")(tryfirst=True), "tryfirst"),
        (pluggy.HookimplMarker("tinygrad_peft")(trylast=True), "trylast"),
        (pluggy.HookimplMarker("tinygrad_peft")(wrapper=True), "wrapper"),
        (pluggy.HookimplMarker("tinygrad_peft")(hookwrapper=True), "hookwrapper"),
    ],
)
def test_a_plugin_cannot_choose_its_place_among_the_others(
    mark: Callable[[object], object], option: str
) -> None:
    def check_recipe(draft: Draft) -> Iterator[None]:
        yield

    refused(SimpleNamespace(check_recipe=mark(check_recipe)), f"check_recipe asks for {option}")


def test_a_class_is_refused() -> None:
    class Plugin:
        @hookimpl(hookspecs.peft_methods)
        @staticmethod
        def peft_methods() -> Sequence[type[PeftConfig]]:
            return []

    refused(Plugin, "is a class: register a module or an instance")


def test_a_plugin_that_answers_no_hook_is_refused() -> None:
    refused(ModuleType("bystander"), "no function .*hookimpl")


def test_a_plugin_whose_methods_cannot_be_listed_is_refused() -> None:
    def peft_methods() -> Sequence[type[PeftConfig]]:
        raise RuntimeError("not today")

    made = SimpleNamespace(peft_methods=hookimpl(hookspecs.peft_methods)(peft_methods))
    refused(made, "peft_methods: RuntimeError: not today")


@pytest.mark.parametrize(("answer", "got"), [([int], "int"), (None, "None"), ([LoraConfig()], "")])
def test_a_plugin_whose_methods_are_no_config_classes_is_refused(answer: object, got: str) -> None:
    def peft_methods() -> object:
        return answer

    refused(SimpleNamespace(peft_methods=raw_mark(peft_methods)), f"peft_methods.*{got}")


def test_a_method_without_a_name_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nameless(PeftConfig):
        pass

    refused(plugin(Nameless), "Nameless.*peft_type")


def test_a_name_that_cannot_be_a_folders_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Climber(PeftConfig):
        peft_type: ClassVar[str] = "../LORA"

    refused(plugin(Climber), "Climber needs a peft_type.*letters")


def test_a_name_that_is_taken_is_refused_and_the_first_plugin_stays() -> None:
    host = lora_host()
    with pytest.raises(PluginError, match="'lora' is registered already"):
        host.register(plugin(ShiftConfig), "lora")
    assert list(host.methods()) == ["lora"]


def test_a_plugin_is_not_registered_twice_under_two_names() -> None:
    host = lora_host()
    with pytest.raises(PluginError, match=r"'again' is registered already, as 'lora'"):
        host.register(tinygrad_peft_lora.plugin, "again")
    assert [info.name for info in host.plugins()] == ["lora"]


def test_two_plugins_that_provide_one_method_are_both_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OtherLora(PeftConfig):
        peft_type: ClassVar[str] = "lora"

    host = lora_host()
    with pytest.raises(PluginError, match="'lora' is provided by lora and by other"):
        host.register(plugin(OtherLora), "other")
    assert host.methods() == {"lora": LoraConfig}


# ---------- what is registered ----------


def test_a_plugin_without_methods_is_listed_as_well() -> None:
    host = lora_host()
    host.register(objecting(), "critic")
    assert [(info.name, info.methods) for info in host.plugins()] == [
        ("critic", ()),
        ("lora", (LoraConfig,)),
    ]


def test_an_instance_with_marked_methods_is_a_plugin() -> None:
    class Observer:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @hookimpl(hookspecs.recipe_applied)
        def recipe_applied(self, event: Applied) -> None:
            self.seen.append(event.adapter)

    host, observer = Host(), Observer()
    host.register(observer, "observer")
    host.each(hookspecs.recipe_applied, Applied(Linear(2, 2), (), (), "default"))
    assert observer.seen == ["default"]


def test_an_observer_hears_of_a_recipe_that_was_applied() -> None:
    heard: list[Applied] = []

    def recipe_applied(event: Applied) -> None:
        heard.append(event)

    host = Host()
    host.register(
        SimpleNamespace(recipe_applied=hookimpl(hookspecs.recipe_applied)(recipe_applied)), "ear"
    )
    event = Applied(Linear(2, 2), (), (), "default")
    host.each(hookspecs.recipe_applied, event)
    assert heard == [event]


def test_a_marked_function_is_still_that_function() -> None:
    def recipe_applied(event: Applied) -> None: ...

    assert hookimpl(hookspecs.recipe_applied)(recipe_applied) is recipe_applied


def test_a_copy_of_what_holds_a_host_shares_the_host() -> None:
    host = lora_host()
    assert copy.deepcopy({"host": host})["host"] is host


# ---------- what is installed ----------

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
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
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


def test_two_distributions_that_claim_one_name_are_both_named(install: Install) -> None:
    install("honest-lora", "lora = fake_one", fake_one=GOOD)
    install("aaa-lora", "lora = fake_two", fake_two=GOOD)
    with pytest.raises(
        PluginError, match=r"'lora': aaa-lora \(fake_two\) and honest-lora \(fake_one\)"
    ):
        Host.installed()


def test_one_distribution_that_claims_a_name_twice_is_named(install: Install) -> None:
    install(
        "double", "lora = fake_one\n[tinygrad_peft]\nlora = fake_two", fake_one=GOOD, fake_two=GOOD
    )
    with pytest.raises(PluginError, match=r"'lora': double \(fake_one\) and double \(fake_two\)"):
        Host.installed()


@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("fake_broken", "raise RuntimeError('half written')", "RuntimeError: half written"),
        ("fake_broken", "import no_such_dependency", "ModuleNotFoundError.*no_such_dependency"),
        ("fake_broken", "def (:", "SyntaxError"),
        ("fake_broken", "raise SystemExit(3)", "SystemExit: 3"),
        ("fake_missing", "", "ModuleNotFoundError.*fake_missing"),
        ("fake_broken:plugin", "other = 1", "AttributeError.*plugin"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_its_distribution(
    install: Install, target: str, source: str, reason: str
) -> None:
    install("bad-dist", f"bad = {target}", fake_broken=source)
    with pytest.raises(PluginError, match=rf"'bad' of bad-dist \({target}\).*{reason}"):
        Host.installed()


def test_what_register_refuses_is_refused_when_installed(install: Install) -> None:
    install("idle-dist", "idle = fake_idle", fake_idle="")
    with pytest.raises(PluginError, match=r"(?s)'idle'.*no function"):
        Host.installed()


def test_a_class_behind_an_entry_point_is_refused(install: Install) -> None:
    install("class-dist", "kind = fake_kind:Kind", fake_kind="class Kind: pass")
    with pytest.raises(PluginError, match="'kind' is a class"):
        Host.installed()


def test_the_methods_of_the_environment_are_found_with_their_distributions() -> None:
    found = {info.name: info for info in Host.installed().plugins()}
    assert found["lora"].distribution == "tinygrad-peft"
    assert found["lora"].methods == (LoraConfig,)


def test_a_third_partys_method_is_found_as_the_built_in_ones_are() -> None:
    pytest.importorskip("tinygrad_peft_bitfit")
    found = {info.name: info for info in Host.installed().plugins()}
    assert (found["bitfit"].distribution, found["bitfit"].version) == (
        "tinygrad-peft-bitfit",
        "0.1.0",
    )
    assert list(Host.installed().methods()) == sorted({"bitfit", *Host.installed().methods()})
    assert "bitfit" in Host.installed().methods()
