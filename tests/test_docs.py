"""The documents agree with the code."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from tinygrad_peft import Host, Module, Tensor, Transformer, peft
from tinygrad_peft.nn import AdamW, Affine, Init, Linear
from tinygrad_peft.peft import (
    AffineShape,
    Applied,
    Combination,
    Draft,
    ForeignFolder,
    ForeignRequest,
    ModelShape,
    ParameterCount,
    Site,
    Source,
    TargetedConfig,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.testing import SMALL_MODELS, MethodConformance
from tinygrad_peft.testing.settings import MethodSettings
from tinygrad_peft.train import StepEnded, TrainConfig, TrainingEnded
from tinygrad_peft.train import hookspecs as train_hookspecs
from tinygrad_peft.train.config import CHECKPOINT_SETTINGS

ROOT = Path(__file__).parent.parent
HOOKS: dict[str, Callable[..., object]] = {
    name: getattr(floor, name) for floor in (hookspecs, train_hookspecs) for name in floor.__all__
}
SOURCES = [*sorted(ROOT.glob("tinygrad_peft/**/*.py")), *sorted(ROOT.glob("plugins/**/*.py"))]

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="these tests were copied away from the documents"
)


@dataclass(frozen=True)
class HookRow:
    """A row of the table of hooks."""

    name: str
    signature: str
    arguments: str
    used_by: str
    example: str

    @property
    def spec(self) -> Callable[..., object]:
        return HOOKS[self.name]


def hook_rows() -> list[HookRow]:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    _, _, table = text.partition("| hook | signature |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    return [
        HookRow(
            name.strip(" `"),
            signature.strip(" `").replace("\\|", "|"),
            arguments.strip(),
            used_by.strip(),
            example.strip(" `"),
        )
        for name, signature, arguments, used_by, example in cells
    ]


def written(function: Callable[..., object]) -> str:
    """The signature with the classes' bare names."""
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(inspect.signature(function)))


def test_the_table_of_hooks_has_every_hook_once() -> None:
    assert sorted(row.name for row in hook_rows()) == sorted(HOOKS)


def test_the_table_of_hooks_has_the_signatures_of_the_code() -> None:
    rows = hook_rows()
    assert {row.name: row.signature for row in rows} == {
        row.name: written(row.spec) for row in rows
    }


def test_the_table_of_hooks_explains_each_argument() -> None:
    for row in hook_rows():
        explained = re.findall(r"`(\w+)`:", row.arguments) or (
            [] if row.arguments == "none" else None
        )
        assert explained == list(inspect.signature(row.spec).parameters), row.name
        assert row.used_by


@dataclass(frozen=True, kw_only=True)
class MyConfig(TargetedConfig):
    peft_type: ClassVar[str] = "MINE"


class MyLinear(Module):
    """The wrapper in the examples."""

    base_layer: Affine

    def __init__(self, base: Affine) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x)

    def merged(self) -> Module:
        return Linear(self.in_features, self.out_features)


def step_ended(model: Module) -> StepEnded:
    return StepEnded(
        model=model,
        optimizer=AdamW(model.parameters()),
        step=7,
        total_steps=9,
        epoch=1.0,
        loss=0.5,
        lrs=(1e-3,),
        grad_norm=1.0,
        tokens=10,
        seconds=0.1,
    )


def training_ended(model: Module) -> TrainingEnded:
    return TrainingEnded(
        model=model,
        outcome="finished",
        step=9,
        seconds=1.0,
        tokens_per_second=10.0,
        saved_to=None,
    )


def test_the_examples_in_the_table_of_hooks_are_answers_that_a_host_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Transformer(SMALL_MODELS["llama"])
    config, layer = MyConfig(target_modules=["v_proj"]), Linear(2, 3)
    site = Site("v", "v_proj", layer, 0, is_target=True, init=Init(), model=model)
    source = Source(config, 1.0, {"v": {}})
    shape = ModelShape(model.config, 0, (AffineShape("v", 2, 3, has_bias=True),), 0)
    arguments = {
        "peft_methods": (),
        "adapt_module": (config, site),
        "merge_module": (MyLinear(layer),),
        "count_parameters": (config, shape),
        "check_recipe": (Draft(model, (config, config), (frozenset(),) * 2),),
        "combine_adapters": (config, Combination((source, source), "linear", None, 0.5, 0)),
        "read_foreign": (ForeignFolder("mlx-lm", {}, {}),),
        "write_foreign": (config, ForeignRequest("mlx-lm", "a", (), model.config)),
        "recipe_applied": (Applied(model, (config,), ("v",), "default"),),
        "extra_loss": (model,),
        "step_ended": (step_ended(model),),
        "training_ended": (training_ended(model),),
        "running_state": (model,),
    }
    host, mark = Host(), cast("Any", hookimpl)
    names = {**vars(peft), "Tensor": Tensor, "MyConfig": MyConfig, "MyLinear": MyLinear}
    for row in hook_rows():
        parameters = ", ".join(inspect.signature(row.spec).parameters)
        function = eval(f"lambda {parameters}: {row.example}", names)  # noqa: S307 - our own page
        host.register(SimpleNamespace(example=mark(row.spec)(function)), row.name)
    answers = {name: host.each(HOOKS[name], *given) for name, given in arguments.items()}
    silent = {"read_foreign", "write_foreign", "recipe_applied", "running_state"}
    silent |= {"step_ended", "training_ended"}
    assert {name for name, found in answers.items() if not found} == silent
    assert answers["check_recipe"] == [["step 1: only once"]]
    assert answers["count_parameters"] == [ParameterCount(trainable=1, added=1)]
    assert capsys.readouterr().out == "v\n7 0.5\nfinished\n"


def test_the_files_on_the_plugins_page_are_those_that_are_installed_and_run() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    shown = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```\n", text, flags=re.DOTALL)
    assert len(shown) == 3
    assert dict(shown) == {path: (ROOT / path).read_text("utf-8") for path, _ in shown}


def test_the_plugins_page_has_every_promise_and_every_setting_of_the_suite() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    page = text.partition("## Testing a method")[2].partition("## What a method rewrites")[0]
    listed = re.findall(r"^\| `(\w+)(?:\(\))?` \|", page, flags=re.MULTILINE)
    promises = [
        name.removeprefix("test_") for name in dir(MethodConformance) if name.startswith("test_")
    ]
    settings = [*MethodSettings.__annotations__, "plugins"]
    assert sorted(listed) == sorted([*promises, *settings])


def test_documented_defaults_of_training_are_those_of_the_code_and_of_the_help() -> None:
    """The table in docs/cli.md, TrainConfig, and each command with one of its options."""
    click = pytest.importorskip("click")
    from tinygrad_peft.cli.app import cli

    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \|", text, flags=re.MULTILINE)
    documented = {name.replace("-", "_"): value for name, value in rows}
    config = TrainConfig()
    in_code = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert documented == {
        name: "none" if value is None else str(value) for name, value in in_code.items()
    }
    for command, expected in {
        "finetune": in_code,
        "compare": {k: v for k, v in in_code.items() if k not in CHECKPOINT_SETTINGS},
        "evaluate": {name: in_code[name] for name in ("batch_size", "max_length")},
    }.items():
        options = {p.name: p for p in cli.commands[command].params if p.name in in_code}
        assert {name: option.default for name, option in options.items()} == expected
        shown = " ".join(cli.commands[command].get_help(click.Context(cli)).split())
        for name, value in expected.items():
            help_text = shown.partition(f"--{name.replace('_', '-')} ")[2].partition(" --")[0]
            assert (f"[default: {value}]" in help_text) is (value is not None), (command, name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_methods_have_docstrings(path: Path) -> None:
    undocumented = [
        f"{node.name} (line {node.lineno})"
        for owner in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(owner, ast.Module | ast.ClassDef) and not owner_is_private(owner)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and ast.unparse(node.body[0]) != "..."  # a protocol states its contract
        and not any(is_overload(d) for d in node.decorator_list)
    ]
    assert undocumented == []


def owner_is_private(owner: ast.Module | ast.ClassDef) -> bool:
    return isinstance(owner, ast.ClassDef) and owner.name.startswith("_")


def is_overload(decorator: ast.expr) -> bool:
    names = {n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)}
    attributes = {n.attr for n in ast.walk(decorator) if isinstance(n, ast.Attribute)}
    return bool({"overload", "setter"} & (names | attributes))


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, left = set(), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
            left += [(page.parent / link).resolve() for link in links]
    assert set(PAGES[1:]) <= reached


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_pages_lead_to_headings(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text("utf-8"))
    lost = [
        f"{page}#{anchor}"
        for page, anchor in links
        if anchor not in anchors(path.parent / page if page else path)
    ]
    assert lost == []


def anchors(page: Path) -> set[str]:
    """The headings as GitHub and MkDocs name them in links."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tests_that_pages_name_exist() -> None:
    pages = [page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")]
    named = {path for page in pages for path in re.findall(r"`(tests/[^`]*)`", page)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def glossary() -> dict[str, str]:
    """Read the terms and their entries."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return dict(part.split("\n", 1) for part in parts[1:])


def test_the_glossary_is_in_order_and_each_entry_is_short_and_links_to_a_page() -> None:
    terms = glossary()
    assert list(terms) == sorted(terms, key=str.lower)
    assert [term for term, text in terms.items() if "](" not in text] == []
    assert [term for term, text in terms.items() if len(text.split()) > 60] == []


def test_every_term_of_the_glossary_is_used_on_the_page_that_it_links_to_or_in_the_code() -> None:
    code = "\n".join(path.read_text("utf-8") for path in SOURCES).lower()
    unused = []
    for term, text in glossary().items():
        pages = [ROOT / "docs" / link for link in re.findall(r"\]\(([^)#:]+)", text)]
        linked = "".join(page.read_text("utf-8") for page in pages)
        if term.lower() not in linked.lower() + code:
            unused.append(term)
    assert unused == []


def test_other_pages_lead_to_the_glossary_and_it_has_the_terms_of_the_design() -> None:
    assert "(glossary.md)" in (ROOT / "docs" / "index.md").read_text("utf-8")
    asked = {"Pullback", "Seam", "Site", "Host", "Step", "Family", "Tied", "Absmax", "Density"}
    assert asked <= set(glossary())
