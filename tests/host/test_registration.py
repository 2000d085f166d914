from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pluggy
import pytest

import tinygrad_peft_lora.plugin
from tests.peft.small import LLAMA, ShiftConfig, lora_host, plugin, small
from tinygrad_peft.errors import PluginError
from tinygrad_peft.host import Host, PluginInfo, hookimpl
from tinygrad_peft.nn import Linear, Module
from tinygrad_peft.peft import (
    Draft,
    PeftConfig,
    Site,
    hookspecs,
    methods_of,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig


def draft() -> Draft:
    return Draft(small(LLAMA), (), ())


def assert_is_empty(host: Host) -> None:
    """No answer and no name of a refused plugin is left; a proper one can still be added."""
    assert host.plugins() == ()
    assert host.each(hookspecs.check_recipe, draft()) == []
    host.register(tinygrad_peft_lora.plugin, "refused")
    assert list(methods_of(host)) == ["lora"]


def refused(made: object, match: str) -> None:
    host = Host()
    with pytest.raises(PluginError, match=f"(?s){match}") as caught:
        host.register(made, "refused")
    assert "'refused'" in str(caught.value)
    assert_is_empty(host)


def refused_function(spec: Callable[..., object], function: object, *kind: object) -> str:
    """The one sentence on a function that does not fit its hook."""
    assert isinstance(function, FunctionType)
    mark: Any = hookimpl
    own = FunctionType(function.__code__, {}, function.__name__, function.__defaults__)
    own.__annotations__, own.__kwdefaults__ = function.__annotations__, function.__kwdefaults__
    host = Host()
    with pytest.raises(PluginError) as caught:
        host.register(SimpleNamespace(answer=mark(spec, *kind)(own)), "refused")
    assert_is_empty(host)
    first, sentence = str(caught.value).split("\n  - ")
    assert first == "plugin 'refused' does not fit:"
    return sentence


# ---------- functions that do not fit ----------


def too_little(config: PeftConfig) -> Module | None: ...
def other_names(config: PeftConfig, place: Site) -> Module | None: ...
def other_order(site: Site, config: PeftConfig) -> Module | None: ...
def with_default(config: PeftConfig, site: Site | None = None) -> Module | None: ...
def by_name(config: PeftConfig, *, site: Site) -> Module | None: ...
def of_lora(config: LoraConfig, site: Site) -> Module | None: ...
def of_any(config: PeftConfig, site: Site) -> Module | None: ...
def of_text(config: str, site: Site) -> Module | None: ...
def of_a_path(config: PeftConfig, site: str) -> Module | None: ...
def to_a_tensor(config: PeftConfig, site: Site) -> Tensor | None: ...
def to_texts(config: PeftConfig, site: Site) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (too_little, "expected (config, site) without defaults, got (config)"),
        (other_names, "expected (config, site) without defaults, got (config, place)"),
        (other_order, "expected (config, site) without defaults, got (site, config)"),
        (with_default, "expected (config, site) without defaults, got (config, site=None)"),
        (by_name, "expected (config, site) without defaults, got (config, *, site)"),
        (of_lora, "config: expected PeftConfig, got LoraConfig"),
        (of_text, "config: expected PeftConfig, got str"),
        (of_a_path, "site: expected Site, got str"),
        (to_a_tensor, "expected to return Module or None, got Tensor or None"),
        (to_texts, "expected to return Module or None, got list[str]"),
    ],
)
def test_a_function_with_other_types_than_its_hook_is_refused(
    function: object, sentence: str
) -> None:
    assert refused_function(hookspecs.adapt_module, function) == f"adapt_module: {sentence}"


@pytest.mark.parametrize(
    ("function", "kind", "sentence"),
    [
        (of_any, int, "expected a kind of PeftConfig, got int"),
        (of_any, Linear, "expected a kind of PeftConfig, got Linear"),
        (of_any, "lora", "expected a kind of PeftConfig, got 'lora'"),
        (of_lora, IA3Config, "config: expected IA3Config, got LoraConfig"),
        (of_lora, PeftConfig, "config: expected PeftConfig, got LoraConfig"),
        (of_text, LoraConfig, "config: expected LoraConfig, got str"),
        (of_a_path, LoraConfig, "site: expected Site, got str"),
        (to_a_tensor, LoraConfig, "expected to return Module or None, got Tensor or None"),
    ],
)
def test_a_narrowed_function_with_other_types_is_refused(
    function: object, kind: object, sentence: str
) -> None:
    got = refused_function(hookspecs.adapt_module, function, kind)
    assert got == f"adapt_module: {sentence}"


def test_a_hook_without_parameters_takes_no_kind() -> None:
    def peft_methods() -> Sequence[type[PeftConfig]]:
        return []

    sentence = refused_function(hookspecs.peft_methods, peft_methods, LoraConfig)
    assert sentence == "peft_methods: expected no kind, since the hook has no parameters"


def test_a_list_of_other_things_is_refused() -> None:
    def check_recipe(draft: Draft) -> list[int]:
        return []

    sentence = refused_function(hookspecs.check_recipe, check_recipe)
    assert sentence == "check_recipe: expected to return Sequence[str], got list[int]"


def test_a_function_without_annotations_fits() -> None:
    mark: Any = hookimpl(hookspecs.adapt_module)
    host = Host()
    host.register(SimpleNamespace(a=mark(lambda config, site: None)), "bare")
    assert host.plugins() == (PluginInfo("bare"),)


def test_annotations_that_exist_for_mypy_alone_are_left_to_mypy() -> None:
    def adapt_module(config: "NoSuchName", site: Site) -> Module | None:  # type: ignore[name-defined]  # noqa: F821
        return None

    host = Host()
    host.register(SimpleNamespace(a=hookimpl(hookspecs.adapt_module)(adapt_module)), "lazy")
    assert host.plugins() == (PluginInfo("lazy"),)


async def waits(draft):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return []


def generates(draft):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    yield "no"


async def streams(draft):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    yield "no"


@pytest.mark.parametrize("function", [waits, generates, streams])
def test_an_async_function_and_a_generator_are_refused(function: object) -> None:
    sentence = refused_function(hookspecs.check_recipe, function)
    assert sentence == "check_recipe: expected a plain function, got an async one or a generator"


def test_all_functions_that_do_not_fit_are_listed() -> None:
    made = SimpleNamespace(
        one=hookimpl(hookspecs.adapt_module)(too_little),  # type: ignore[arg-type]
        two=hookimpl(hookspecs.adapt_module)(of_text),  # type: ignore[arg-type]
    )
    refused(made, r"got \(config\).*config: expected PeftConfig, got str")


# ---------- marks ----------


def test_a_mark_without_a_hook_is_refused_at_once() -> None:
    def adapt_module(config: PeftConfig, site: Site) -> Module | None:
        return None

    mark: Any = hookimpl
    with pytest.raises(PluginError, match=r"adapt_module: expected the declaration of a hook, as"):
        mark(adapt_module)


def test_a_function_answers_one_hook() -> None:
    @hookimpl(hookspecs.check_recipe)
    def check_recipe(draft: Draft) -> Sequence[str]:
        return []

    with pytest.raises(PluginError, match="check_recipe: expected one mark by hookimpl, got two"):
        hookimpl(hookspecs.check_recipe)(check_recipe)


def test_pluggys_own_mark_is_ignored() -> None:
    def adapt_module(config: PeftConfig, site: Site) -> Module | None:
        return None

    made = SimpleNamespace(adapt_module=pluggy.HookimplMarker("tinygrad_peft")(adapt_module))
    refused(made, "expected a function marked by hookimpl, got none")


def test_the_properties_of_an_instance_are_left_alone() -> None:
    class Plugin:
        @property
        def trap(self) -> int:
            raise RuntimeError("read")

        @hookimpl(hookspecs.check_recipe)
        def check_recipe(self, draft: Draft) -> Sequence[str]:
            return ["seen"]

    host = Host()
    host.register(Plugin(), "trapped")
    assert host.each(hookspecs.check_recipe, draft()) == [["seen"]]


# ---------- plugins that do not fit ----------


def test_a_class_is_refused() -> None:
    class Plugin:
        @hookimpl(hookspecs.peft_methods)
        @staticmethod
        def peft_methods() -> Sequence[type[PeftConfig]]:
            return []

    refused(Plugin, "expected a module or an instance, got a class")


def test_a_plugin_that_answers_no_hook_is_refused() -> None:
    refused(ModuleType("bystander"), "expected a function marked by hookimpl")


def test_a_plugin_whose_methods_cannot_be_listed_is_refused() -> None:
    def peft_methods() -> Sequence[type[PeftConfig]]:
        raise RuntimeError("not today")

    made = SimpleNamespace(peft_methods=hookimpl(hookspecs.peft_methods)(peft_methods))
    refused(made, "hook peft_methods: RuntimeError: not today")


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        ([int], r"\[<class 'int'>\]"),
        (None, "None"),
        ([LoraConfig()], r"\[LoraConfig\("),
        ("lora", "'lora'"),
    ],
)
def test_a_plugin_whose_methods_are_not_config_classes_is_refused(answer: object, got: str) -> None:
    def peft_methods():  # type: ignore[no-untyped-def]  # noqa: ANN202
        return answer

    mark: Any = hookimpl(hookspecs.peft_methods)
    expected = r"hook peft_methods: expected Sequence\[type\[PeftConfig\]\], got "
    refused(SimpleNamespace(peft_methods=mark(peft_methods)), expected + got)


def test_a_method_without_a_name_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nameless(PeftConfig):
        pass

    refused(plugin(Nameless), "Nameless.*peft_type")


def test_a_name_that_cannot_be_a_folders_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Climber(PeftConfig):
        peft_type: ClassVar[str] = "../LORA"

    refused(plugin(Climber), "Climber: expected a peft_type.*letters")


def test_a_name_that_is_taken_is_refused_and_the_first_plugin_stays() -> None:
    host = lora_host()
    with pytest.raises(PluginError, match="'lora' is already registered"):
        host.register(plugin(ShiftConfig), "lora")
    assert list(methods_of(host)) == ["lora"]


def test_a_plugin_is_not_registered_twice_under_two_names() -> None:
    host = lora_host()
    with pytest.raises(PluginError, match=r"'again' is already registered, as 'lora'"):
        host.register(tinygrad_peft_lora.plugin, "again")
    assert [info.name for info in host.plugins()] == ["lora"]


def test_two_plugins_that_provide_one_method_are_both_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OtherLora(PeftConfig):
        peft_type: ClassVar[str] = "lora"

    host = lora_host()
    with pytest.raises(PluginError, match="'lora' is provided by plugin 'lora' too"):
        host.register(plugin(OtherLora), "other")
    assert methods_of(host) == {"lora": LoraConfig}


def test_a_plugin_that_provides_one_name_twice_is_refused() -> None:
    refused(plugin(ShiftConfig, ShiftConfig), "peft_methods: 'shift' is provided twice")


def test_a_plugin_without_methods_is_listed_as_well() -> None:
    host = lora_host()
    host.register(plugin(), "critic")
    assert host.plugins() == (PluginInfo("critic"), PluginInfo("lora"))
    assert methods_of(host) == {"lora": LoraConfig}
