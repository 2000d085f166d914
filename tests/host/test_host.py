import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.peft.small import LLAMA, ShiftConfig, lora_host, plugin, shift, small
from tinygrad_peft.errors import ConfigError, PluginError
from tinygrad_peft.host import Host, hookimpl, hookspec
from tinygrad_peft.nn import Init, Linear, Module
from tinygrad_peft.peft import (
    Applied,
    Draft,
    PeftConfig,
    Site,
    hookspecs,
)
from tinygrad_peft_lora import LoraConfig

SITE = Site(
    "layer", "layer", Linear(2, 2, init=Init()), 0, is_target=True, init=Init(), model=Linear(2, 2)
)


def draft() -> Draft:
    return Draft(small(LLAMA), (), ())


def silent(config: PeftConfig, site: Site) -> Module | None:
    return None


def greedy(config: PeftConfig, site: Site) -> Module | None:
    return Linear(2, 2)


def objecting(*reasons: str) -> object:
    def check_recipe(draft: Draft) -> Sequence[str]:
        return reasons

    return SimpleNamespace(check_recipe=hookimpl(hookspecs.check_recipe)(check_recipe))


def test_an_empty_host_has_no_plugins_and_no_answers() -> None:
    host = Host()
    assert host.plugins() == ()
    assert host.each(hookspecs.check_recipe, draft()) == []
    assert host.one(hookspecs.adapt_module, LoraConfig(), SITE) is None


def test_each_gives_the_answers_in_the_order_of_registration() -> None:
    host = Host()
    for name in ("c", "a", "b"):
        host.register(objecting(name), name)
    assert host.each(hookspecs.check_recipe, draft()) == [("c",), ("a",), ("b",)]


def test_each_leaves_out_the_plugins_that_answer_none() -> None:
    host = Host()
    host.register(plugin(adapt=silent), "silent")
    host.register(plugin(adapt=greedy), "speaking")
    (answer,) = host.answers(hookspecs.adapt_module, LoraConfig(), SITE)
    assert answer.plugin.name == "speaking"
    assert [answer.value] != host.each(hookspecs.adapt_module, LoraConfig(), SITE)  # made anew


def test_one_gives_the_answer_of_the_only_plugin_that_has_one() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    answer = host.one(hookspecs.adapt_module, ShiftConfig(target_modules=["layer"]), SITE)
    assert type(answer).__name__ == "ShiftLinear"


def test_arguments_may_be_given_by_name() -> None:
    host = lora_host()
    by_name = host.one(hookspecs.adapt_module, config=LoraConfig(r=2), site=SITE)
    by_place = host.one(hookspecs.adapt_module, LoraConfig(r=2), SITE)
    assert type(by_name) is type(by_place) is not type(None)


def test_a_call_with_wrong_arguments_is_an_error_whether_or_not_a_plugin_is_there() -> None:
    for host in (Host(), lora_host()):
        with pytest.raises(TypeError, match="site"):
            host.one(hookspecs.adapt_module, LoraConfig())  # type: ignore[call-arg]


def test_two_plugins_that_answer_one_site_are_both_named_with_the_site() -> None:
    host = Host()
    for name in ("northern", "southern"):
        host.register(plugin(adapt=greedy), name)
    with pytest.raises(PluginError, match="adapt_module: expected one answer, got 2") as caught:
        host.one(hookspecs.adapt_module, LoraConfig(), SITE)
    assert "northern and southern" in str(caught.value)
    assert "path='layer'" in str(caught.value)


def test_plugins_without_an_answer_are_not_named() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    host.register(plugin(adapt=greedy), "greedy")
    with pytest.raises(PluginError, match="got 2, from greedy and lora"):
        host.one(hookspecs.adapt_module, LoraConfig(), SITE)


# ---------- narrowed answers ----------


class Asked:
    """Remembers which of its functions was asked about what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, PeftConfig]] = []

    @hookimpl(hookspecs.adapt_module, LoraConfig)
    def of_lora(self, config: LoraConfig, site: Site) -> Module | None:
        self.asked.append(("lora", config))
        return Linear(config.r, 2)

    @hookimpl(hookspecs.adapt_module, ShiftConfig)
    def of_shift(self, config: ShiftConfig, site: Site) -> Module | None:
        self.asked.append(("shift", config))
        return None

    @hookimpl(hookspecs.adapt_module)
    def of_any(self, config: PeftConfig, site: Site) -> Module | None:
        self.asked.append(("any", config))
        return None


def test_a_narrowed_function_is_asked_about_its_kind_alone() -> None:
    host, asked = Host(), Asked()
    host.register(asked, "asked")
    answer = host.one(hookspecs.adapt_module, LoraConfig(r=3), SITE)
    assert isinstance(answer, Linear)
    assert answer.in_features == 3
    assert sorted(name for name, _ in asked.asked) == ["any", "lora"]
    asked.asked.clear()
    assert host.one(hookspecs.adapt_module, ShiftConfig(), SITE) is None
    assert sorted(name for name, _ in asked.asked) == ["any", "shift"]


def test_a_kind_includes_the_classes_derived_from_it() -> None:
    @dataclass(frozen=True, kw_only=True)
    class SmallLora(LoraConfig):
        r: int = 1

    host, asked = Host(), Asked()
    host.register(asked, "asked")
    assert host.one(hookspecs.adapt_module, SmallLora(), SITE) is not None
    assert ("lora", SmallLora()) in asked.asked


def test_several_plugins_may_narrow_to_one_class() -> None:
    host, first, second = Host(), Asked(), Asked()
    host.register(first, "first")
    host.register(second, "second")
    assert len(host.each(hookspecs.adapt_module, LoraConfig(), SITE)) == 2
    with pytest.raises(PluginError, match="expected one answer, got 2, from first and second"):
        host.one(hookspecs.adapt_module, LoraConfig(), SITE)


def test_a_merged_module_is_narrowed_by_its_class() -> None:
    @hookimpl(hookspecs.merge_module, Linear)
    def merge_module(module: Linear) -> Module | None:
        return Linear(module.in_features, 9)

    host = Host()
    host.register(SimpleNamespace(merge_module=merge_module), "merging")
    merged = host.one(hookspecs.merge_module, Linear(4, 2))
    assert isinstance(merged, Linear)
    assert (merged.in_features, merged.out_features) == (4, 9)
    assert host.one(hookspecs.merge_module, small(LLAMA)) is None


# ---------- exceptions in hooks ----------


def failing(error: BaseException) -> Host:
    def check_recipe(draft: Draft) -> Sequence[str]:
        raise error

    host = Host()
    host.register(
        SimpleNamespace(check_recipe=hookimpl(hookspecs.check_recipe)(check_recipe)), "weak"
    )
    return host


def test_an_exception_in_a_hook_names_the_plugin_and_the_hook() -> None:
    cause = KeyError("rank")
    with pytest.raises(PluginError) as caught:
        failing(cause).each(hookspecs.check_recipe, draft())
    assert str(caught.value) == "plugin 'weak', hook check_recipe: KeyError: 'rank'"
    assert caught.value.__cause__ is cause


def test_a_plugin_that_exits_in_a_hook_is_named() -> None:
    with pytest.raises(PluginError, match="plugin 'weak', hook check_recipe: SystemExit: 3"):
        failing(SystemExit(3)).each(hookspecs.check_recipe, draft())


@pytest.mark.parametrize("error", [ConfigError("no such start"), MemoryError("too large")])
def test_errors_of_the_tree_keep_their_class_and_message_and_are_noted(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        failing(error).each(hookspecs.check_recipe, draft())
    assert caught.value is error
    assert error.__notes__ == ["(plugin 'weak', hook check_recipe)"]


def test_an_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        failing(KeyboardInterrupt()).each(hookspecs.check_recipe, draft())


# ---------- answers that are refused ----------


@pytest.mark.parametrize(
    ("hook", "answer", "message"),
    [
        ("adapt_module", 3, "adapt_module: expected Module or None, got 3"),
        ("adapt_module", SITE.module, "layer: expected a new module, got the site's own"),
        ("merge_module", True, "merge_module: expected Module or None, got True"),
        ("merge_module", SITE.module, "expected a plain module, got the adapted one (Linear)"),
        ("check_recipe", "no", "check_recipe: expected Sequence[str], got 'no'"),
        ("check_recipe", [1], "check_recipe: expected Sequence[str], got [1]"),
        ("check_recipe", None, "check_recipe: expected Sequence[str], got None"),
        ("count_parameters", 12, "count_parameters: expected ParameterCount or None, got 12"),
        ("count_parameters", (1, 2), "expected ParameterCount or None, got (1, 2)"),
        ("recipe_applied", "seen", "recipe_applied: expected None, got 'seen'"),
    ],
)
def test_an_answer_of_another_type_is_refused_and_names_the_plugin(
    hook: str, answer: object, message: str
) -> None:
    functions: dict[str, Callable[..., Any]] = {
        "adapt_module": lambda config, site: answer,
        "merge_module": lambda module: answer,
        "check_recipe": lambda draft: answer,
        "count_parameters": lambda config, shape: answer,
        "recipe_applied": lambda event: answer,
    }
    spec, mark = getattr(hookspecs, hook), cast("Any", hookimpl)
    host = Host()
    host.register(SimpleNamespace(answer=mark(spec)(functions[hook])), "odd")
    arguments = {
        "adapt_module": (LoraConfig(), SITE),
        "merge_module": (SITE.module,),
        "count_parameters": (LoraConfig(), None),
    }
    with pytest.raises(PluginError) as caught:
        host.each(spec, *arguments.get(hook, (draft(),)))
    assert str(caught.value).startswith(f"plugin 'odd', hook {hook}: ")
    assert message in str(caught.value)


# ---------- hooks of any floor ----------


@hookspec
def greeting(name: str) -> str | None:
    raise NotImplementedError


def test_a_host_learns_a_hook_from_an_answer_or_from_a_call() -> None:
    @hookimpl(greeting)
    def answer(name: str) -> str | None:
        return f"hello {name}" if name else None

    host = Host()
    assert host.each(greeting, "you") == []
    host.register(SimpleNamespace(answer=answer), "polite")
    assert host.each(greeting, "you") == ["hello you"]
    assert host.one(greeting, "") is None


def test_two_hooks_of_one_name_are_refused() -> None:
    def declared() -> object:
        @hookspec
        def greeting(name: str) -> str | None:
            raise NotImplementedError

        return greeting

    @hookimpl(greeting)
    def answer(name: str) -> str | None:
        return None

    host, other = Host(), declared()
    host.register(SimpleNamespace(answer=answer), "polite")
    with pytest.raises(PluginError, match="hook greeting: expected one declaration, got"):
        host.each(other, "you")  # type: ignore[arg-type]


def test_calling_a_function_that_is_not_a_hook_is_refused() -> None:
    with pytest.raises(PluginError, match="draft: expected the declaration of a hook"):
        Host().each(draft)


# ---------- plugins ----------


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


def test_an_observer_is_called_after_a_recipe_was_applied() -> None:
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


def test_a_copy_of_an_object_with_a_host_shares_the_host() -> None:
    host = lora_host()
    assert copy.deepcopy({"host": host})["host"] is host
