"""The promises about recipes in which the method is one step among others."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft.errors import ConfigError, PeftError
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig, PeftModel, count_recipe, methods_of
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import Snapshot, expect, expect_same
from tinygrad_peft.testing.settings import MethodSettings
from tinygrad_peft.testing.switching import merges_or_refuses

__all__ = ["ComposingPromises", "Composition"]


@dataclass(frozen=True)
class Composition:
    """A case's method in one recipe with a companion, "over" it (the outer one) or "under" it."""

    case: Case
    companion: str
    order: str
    other: PeftConfig

    def __str__(self) -> str:
        return f"{self.case} {self.order} {self.companion}"

    @property
    def itself(self) -> bool:
        """True if the companion is the method itself."""
        return self.companion == self.case.config.peft_type.lower()

    @property
    def recipe(self) -> list[PeftConfig]:
        """Both steps, the inner one first."""
        steps = [self.case.config, self.other]
        return steps[::-1] if self.order == "over" else steps


class ComposingPromises(MethodSettings):
    """With itself and with every installed method, the other being innermost and then outermost.

    A recipe that is refused, before anything is touched, is skipped with the reason.
    """

    def test_composes_with_every_installed_method(self, composition: Composition) -> None:
        """Together they run, learn, leave the base's bits alone, and come off without a trace."""
        case, peft = composition.case, self.apply(composition)
        trained = [(p, p.data.copy()) for p in peft.trainable_parameters()]
        if trained:
            case.train(peft, steps=2)
        logits = case.logits(peft)
        expect(bool(np.isfinite(logits).all()), f"{composition}: logits are not finite")
        idle = sum(np.array_equal(p.data, old) for p, old in trained)
        expect(not idle, f"{composition}: two steps moved nothing of {idle} weights")
        expected, got = case.base().state_dict(), peft.unload().state_dict()
        expect(list(got) == list(expected), f"{composition}: other weights are there, unloaded")
        for name, array in expected.items():
            expect_same(got[name], array, f"{composition}: {name}, unloaded")

    def test_a_later_step_leaves_the_start_of_an_earlier_one_alone(
        self, composition: Composition
    ) -> None:
        """The innermost step draws the weights that it draws alone, whatever follows."""
        together = self.apply(composition)
        inner = composition.recipe[:1]
        alone = composition.case.adapt(composition.case.base(), inner)
        moved = (_values(alone) - _values(together)).total()
        expect(
            not moved,
            f"{composition}: {moved} weights of the innermost step start elsewhere than alone",
        )

    def test_a_composition_is_counted(self, composition: Composition) -> None:
        """The closed forms add up to what the model has."""
        real = self.apply(composition).get_nb_trainable_parameters()
        case = composition.case
        counted = count_recipe(case.shape, composition.recipe, case.host)
        expect(
            counted == real,
            f"{composition}: (trainable, all) is {real} in the model "
            f"and {counted} by count_parameters",
        )

    def test_a_composition_is_saved_and_loaded(
        self, composition: Composition, tmp_path: Path
    ) -> None:
        """The folder alone gives back the recipe, in its order, and the same output."""
        case, peft = composition.case, self.apply(composition)
        case.shake(peft)
        peft.save_pretrained(tmp_path)
        loaded = case.load(tmp_path)
        expect(
            loaded.recipe == peft.recipe,
            f"{composition}: expected to load the recipe {peft.recipe}, got {loaded.recipe}",
        )
        got, expected = case.logits(loaded), case.logits(peft)
        expect_same(got, expected, f"{composition}: logits, saved and loaded")

    def test_a_composition_merges_or_refuses(self, composition: Composition) -> None:
        """Folded into plain layers it gives the same output, or else nothing is changed."""
        peft = self.apply(composition, np.float64)
        composition.case.shake(peft)
        if merges_or_refuses(composition, composition.case, peft):
            return
        alone = composition.itself and self.mergeable
        expect(not alone, f"{composition}: it merges alone, and refuses to merge here")
        pytest.skip(f"{composition}: merging is refused, and changes nothing")

    @pytest.fixture
    def composition(self, case: Case, companion: str, order: str) -> Composition:
        """The method beside one that is installed, with the settings that are given for that."""
        if companion == case.config.peft_type.lower():
            return Composition(case, companion, order, case.config)
        given = self.companions.get(companion)
        try:
            other = methods_of(case.host)[companion]() if given is None else given
        except (ConfigError, TypeError) as error:
            pytest.skip(f"companions[{companion!r}] is needed: {_short(error)}")
        return Composition(case, companion, order, other)

    @classmethod
    def apply(cls, composition: Composition, dtype: type[np.floating] = np.float32) -> PeftModel:
        """The recipe on a model of its own, unless it is refused: then the test ends here.

        Raises AssertionError where the refusal has touched the model or breaks a promise.
        """
        case, recipe = composition.case, composition.recipe
        base = case.base(dtype)
        before = Snapshot.of(base)
        try:
            return case.adapt(base, recipe)
        except PeftError as error:
            before.expect_unchanged(base, f"{composition}: the model that it was refused for")
            promised = composition.itself and cls.composes_with_itself
            expect(not promised, f"{composition}: expected to be applied, got: {error}")
            if not composition.itself:
                _skip_unless_fit(composition, base)
            why = "not promised: composes_with_itself" if composition.itself else _short(error)
            pytest.skip(f"{composition} is refused, and nothing is touched: {why}")


def _skip_unless_fit(composition: Composition, base: Transformer) -> None:
    """Skip the test if the companion alone cannot be applied with these settings either."""
    try:
        composition.case.adapt(base, [composition.other])
    except PeftError as error:
        name = composition.companion
        pytest.skip(f"companions[{name!r}] is needed on {composition.case.family}: {_short(error)}")


def _short(error: Exception) -> str:
    """The first of the problems that an error lists, on one line."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return " ".join(lines[:2]) + more


def _values(peft: PeftModel) -> Counter[bytes]:
    """The values of each weight that is trained."""
    return Counter(p.data.tobytes() for p in peft.trainable_parameters())
