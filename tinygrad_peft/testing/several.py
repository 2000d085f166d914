"""The promises of a model with several adapters."""

from contextlib import nullcontext

import numpy as np
import pytest

from tinygrad_peft.errors import PeftError
from tinygrad_peft.peft import BASE, PeftModel
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import expect, expect_close, expect_same
from tinygrad_peft.testing.settings import MethodSettings

__all__ = ["SeveralPromises"]

FIRST, OTHER = "default", "other"


class SeveralPromises(MethodSettings):
    """Two adapters of the method on one base, one at a time and side by side."""

    def test_switching_adapters_is_bit_exact(self, case: Case) -> None:
        """Each of two adapters gives what it gives where it is the only one."""
        alone = case.adapt(case.base(), seed=1)
        case.shake(alone, seed=1)
        expected = {FIRST: case.logits(case.trained()), OTHER: case.logits(alone)}
        peft = _with_two(case, case.trained())
        for name in (FIRST, OTHER, FIRST):
            peft.set_adapter(name)
            expect_same(case.logits(peft), expected[name], f"{case}: logits of {name!r} of two")
        peft.delete_adapter(OTHER)
        what = f"{case}: logits of {FIRST!r}, {OTHER!r} being deleted"
        expect_same(case.logits(peft), expected[FIRST], what)

    def test_two_adapters_act_at_once(self, case: Case) -> None:
        """One around the other, both act; afterwards each is alone again, bit for bit."""
        peft = _with_two(case, case.trained())
        alone = {}
        for name in (FIRST, OTHER):
            peft.set_adapter(name)
            alone[name] = case.logits(peft)
        try:
            peft.set_adapter((FIRST, OTHER))
        except PeftError as error:
            expect(not self.composes_with_itself, f"{case}: two adapters at once: {error}")
            pytest.skip("not promised: composes_with_itself (two at once are refused)")
        both = case.logits(peft)
        idle = [name for name in alone if np.array_equal(both, alone[_beside(name)])]
        expect(
            not (idle and self.trains),
            f"{case}: of two adapters at once, {' and '.join(idle)} changes nothing",
        )
        peft.set_adapter(FIRST)
        expect_same(case.logits(peft), alone[FIRST], f"{case}: logits of {FIRST!r} after both")

    def test_each_row_may_have_its_own_adapter(self, case: Case) -> None:
        """In one pass each row gets what its adapter, or the base, gives it alone."""
        peft = _with_two(case, case.trained(np.float64))
        names = [FIRST, FIRST, OTHER, BASE]
        ids = np.concatenate([case.ids, case.ids])
        tokens = slice(-ids.shape[1], None)  # the others are virtual
        with no_grad():
            together = peft(ids, adapter_names=names).data
        for row, name in enumerate(names):
            with peft.disable_adapter() if name == BASE else nullcontext():
                if name != BASE:
                    peft.set_adapter(name)
                expected = case.logits(peft, ids[row : row + 1])[0]
            got = together[row]
            if case.is_language_model:
                got, expected = got[tokens], expected[tokens]
            expect_close(got, expected, f"{case}: row {row} of {names}")


def _beside(name: str) -> str:
    return OTHER if name == FIRST else FIRST


def _with_two(case: Case, peft: PeftModel) -> PeftModel:
    """The model with another adapter of the method beside its own, with weights of its own."""
    peft.add_adapter(OTHER, case.config, seed=1)
    peft.set_adapter(OTHER)
    case.shake(peft, seed=1)
    return peft
