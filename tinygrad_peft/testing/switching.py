"""The promises about merging, disabling, removing and copying."""

import copy

import numpy as np
import pytest

from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftModel
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import Snapshot, expect, expect_close, expect_same
from tinygrad_peft.testing.settings import MethodSettings

__all__ = ["SwitchingPromises", "merges_or_refuses"]


class SwitchingPromises(MethodSettings):
    """Merging, unmerging, disabling, removing and copying."""

    def test_merged_equals_unmerged(self, case: Case) -> None:
        """Folded into plain layers it gives the same output; otherwise it refuses."""
        merged = merges_or_refuses(case, case, case.trained(np.float64))
        if not self.mergeable:
            expect(not merged, f"{case} can be merged, and mergeable = False says that it cannot")
            pytest.skip("not promised: mergeable (merging is refused, and changes nothing)")
        expect(merged, f"{case} cannot be merged, and mergeable = True says that it can")

    def test_merging_leaves_a_plain_model(self, case: Case) -> None:
        """After merge_and_unload each module is of the base's kind, with the base's weights."""
        self.needs_promise("mergeable")
        expected, got = _kinds(case.base()), _kinds(case.trained().merge_and_unload())
        for name in dict.fromkeys((*expected, *got)):
            kinds = (expected.get(name, "nothing"), got.get(name, "nothing"))
            expect(
                kinds[0] == kinds[1], f"{case}, merged: {name}: expected {kinds[0]}, got {kinds[1]}"
            )

    def test_unmerging_is_bit_exact(self, case: Case) -> None:
        """Merging and unmerging gives back every module and every bit."""
        self.needs_promise("mergeable")
        peft = case.trained()
        before, logits = Snapshot.of(peft.base_model), case.logits(peft)
        peft.merge_adapter()
        case.logits(peft)
        peft.unmerge_adapter()
        before.expect_unchanged(peft.base_model, f"{case}: the model, unmerged")
        expect_same(case.logits(peft), logits, f"{case}: logits, unmerged")

    def test_disabling_is_bit_exact(self, case: Case) -> None:
        """Disabled, merged or not, the output is the base's; afterwards it is what it was."""
        base, peft = case.logits(case.base()), case.trained()
        for state in ("adapted", *(["merged"] if self.mergeable else [])):
            if state == "merged":
                peft.merge_adapter()
            logits = case.logits(peft)
            with peft.disable_adapter():
                expect_same(case.logits(peft), base, f"{case}: logits of the disabled, {state}")
            expect_same(case.logits(peft), logits, f"{case}: logits of the enabled again, {state}")

    def test_removing_is_bit_exact(self, case: Case) -> None:
        """Unloaded after training, every module and every bit is the base's, trained as before."""
        base = case.base()
        before, logits = Snapshot.of(base), case.logits(base)
        peft = case.adapt(base)
        if self.trains:
            case.train(peft)
        unloaded = peft.unload()
        before.expect_unchanged(unloaded, f"{case}: the model, unloaded")
        expect_same(case.logits(unloaded), logits, f"{case}: logits, unloaded")

    def test_a_deepcopy_is_independent(self, case: Case) -> None:
        """A copy gives the same output, shares no memory, and goes its own way."""
        peft = case.trained()
        before, logits = Snapshot.of(peft.base_model), case.logits(peft)
        twin = copy.deepcopy(peft)
        expect_same(case.logits(twin), logits, f"{case}: logits of a deepcopy")
        shared = _shared(peft, twin)
        expect(not shared, f"{case}: a deepcopy shares {', '.join(shared)}")
        for parameter in twin.base_model.parameters():
            parameter.data += 1
        twin.unload()
        before.expect_unchanged(peft.base_model, f"{case}: the model whose deepcopy was changed")
        expect_same(case.logits(peft), logits, f"{case}: logits after its deepcopy was changed")


def merges_or_refuses(what: object, case: Case, peft: PeftModel) -> bool:
    """Tell if the model merges. Raises AssertionError if the output or a refused model changes."""
    before, logits = Snapshot.of(peft.base_model), case.logits(peft)
    try:
        peft.merge_adapter()
    except PeftError:
        before.expect_unchanged(peft.base_model, f"{what}: the model that could not be merged")
        return False
    expect_close(case.logits(peft), logits, f"{what}: logits, merged")
    return True


def _kinds(model: Transformer) -> dict[str, str]:
    """The class of each module and the shape of each weight, by path."""
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    return kinds | {name: str(p.shape) for name, p in model.named_parameters()}


def _shared(model: PeftModel, twin: PeftModel) -> list[str]:
    """The weights of a model whose memory its twin has, too."""
    copies = dict(twin.base_model.named_parameters())
    return [
        name
        for name, parameter in model.base_model.named_parameters()
        if name in copies and np.shares_memory(parameter.data, copies[name].data)
    ]
