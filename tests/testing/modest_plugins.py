"""Methods that promise less: tests/testing/test_conformance.py runs the suite on them.

`skips` names tests that must be skipped, some by their parameters, with words that their reasons
must have; no test may fail.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tests.testing.rank_one import (
    CannotMerge,
    Method,
    RankOne,
    RankOneConfig,
    RankOneLinear,
)
from tinygrad_peft.nn import Affine, Init
from tinygrad_peft.peft import (
    Draft,
    Host,
    ModelShape,
    ParameterCount,
    PeftConfig,
    TargetedConfig,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.testing import SMALL_MODELS


class TestRight(Method):
    models = SMALL_MODELS


class TestPromisesLess(Method):
    Plugin = CannotMerge
    starts_as_identity = mergeable = False
    skips = (
        ("starts_as_the_base", "not promised: starts_as_identity"),
        (
            "merged_equals_unmerged",
            "not promised: mergeable (merging is refused, and changes nothing)",
        ),
        ("unmerging_is_bit_exact", "not promised: mergeable"),
        ("makes_a_difference_on_every_family", "not promised: to work on gpt2"),
        ("works_with_grouped_query_heads", "not promised: to work on llama"),
        ("generation_continues_as_whole_sequences_do", "bert is not a language model"),
        (
            "a_composition_merges_or_refuses",
            "rank_one on bert over rank_one: merging is refused, and changes nothing",
        ),
    )


class TestQuantisesMore(Method):
    trains = False
    starts_as_identity = False
    skips = (("all_that_it_trains_learns", "not promised: trains"),)

    class Layer(RankOneLinear):
        def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
            super().__init__(base, config, init)
            self.b.data = init.ones(base.out_features, 1)
            self.a.requires_grad = self.b.requires_grad = False

    class Plugin(RankOne):
        @hookimpl(hookspecs.count_parameters, RankOneConfig)
        def count_parameters(self, config: RankOneConfig, shape: ModelShape) -> ParameterCount:
            return ParameterCount(trainable=0, added=self.count(shape))


class TestStandsAlone(Method):
    composes_with_itself = False
    skips = (
        (
            "composes_with_every_installed_method",
            "rank_one on bert over rank_one is refused, and nothing is touched: not promised: ",
        ),
    )

    class Plugin(RankOne):
        def check(self, draft: Draft) -> Sequence[str]:
            return ["one is enough"] if len(draft.recipe) > 1 else []


@dataclass(frozen=True, kw_only=True)
class NeedyConfig(PeftConfig):
    peft_type: ClassVar[str] = "NEEDY"
    length: int


@dataclass(frozen=True, kw_only=True)
class AimlessConfig(TargetedConfig):
    peft_type: ClassVar[str] = "AIMLESS"


@dataclass(frozen=True, kw_only=True)
class ShyConfig(RankOneConfig):
    peft_type: ClassVar[str] = "SHY"


class Company:
    """Methods that cannot do with their defaults, and one that wants to be alone."""

    @hookimpl(hookspecs.peft_methods)
    def peft_methods(self) -> Sequence[type[PeftConfig]]:
        return [NeedyConfig, AimlessConfig, ShyConfig]

    @hookimpl(hookspecs.check_recipe)
    def check_recipe(self, draft: Draft) -> Sequence[str]:
        return ["shy", "very shy"] if draft.steps(ShyConfig) and len(draft.recipe) > 1 else []


class TestIsInDifficultCompany(Method):
    skips: ClassVar[Collection[tuple[str, str]]] = (
        (
            "a_composition_is_counted[bert-needy-over]",
            "companions['needy'] is needed: NeedyConfig.",
        ),
        (
            "composes_with_every_installed_method[bert-aimless-under]",
            (
                "companions['aimless'] is needed on bert: the recipe does not fit the model: "
                "step 0: target_modules: missing"
            ),
        ),
        (
            "composes_with_every_installed_method[bert-shy-over]",
            (
                "rank_one on bert over shy is refused, and nothing is touched: "
                "the recipe is refused: shy (and 1 more)"
            ),
        ),
    )

    @classmethod
    def plugins(cls) -> Host:
        host = super().plugins()
        host.register(Company(), "company")
        return host


class TestComposesWithFewer(TestIsInDifficultCompany):
    composes_with = ("shy",)
    companions = {"shy": ShyConfig(scale=2.0)}
    skips = (("a_composition_is_counted[bert-shy-under]", "rank_one on bert under shy is refused"),)
