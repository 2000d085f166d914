"""The promises about training."""

from collections.abc import Callable

import numpy as np
import pytest

from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Parameter
from tinygrad_peft.peft import PeftModel, count_recipe
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import expect, expect_same
from tinygrad_peft.testing.settings import MethodSettings

__all__ = ["TrainingPromises"]


class TrainingPromises(MethodSettings):
    """The trained weights: their start, their gradients and their count."""

    def test_trains_what_it_added_and_nothing_else(self, case: Case) -> None:
        """No weight of the base requires a gradient, and some of the method's do."""
        base = case.base()
        before = dict(base.named_parameters())
        trained = {id(p) for p in case.adapt(base).trainable_parameters()}
        touched = [name for name, p in before.items() if id(p) in trained]
        expect(not touched, f"{case}: weights of the base would be trained: {', '.join(touched)}")
        if self.trains:
            expect(bool(trained), f"{case}: nothing would be trained")
        else:
            expect(not trained, f"{case} trains nothing, and {len(trained)} weights would be")

    def test_all_that_it_trains_learns(self, case: Case) -> None:
        """A few steps move each of the method's weights."""
        self.needs_promise("trains")
        peft = case.adapt(case.base())
        before = {name: p.data.copy() for name, p in _trainable(peft).items()}
        case.train(peft)
        after = _trainable(peft)
        idle = [name for name, old in before.items() if np.array_equal(old, after[name].data)]
        expect(not idle, f"{case}: three steps moved nothing of {', '.join(idle)}")

    def test_frozen_arrays_keep_their_bits_in_training(self, case: Case) -> None:
        """A few steps move nothing of the base, nor of what the method holds frozen."""
        base = case.base()
        originals = list(base.named_parameters())
        peft = case.adapt(base)
        held = [(n, p) for n, p in peft.base_model.named_parameters() if not p.requires_grad]
        frozen = [(name, p, p.data.copy()) for name, p in originals + held]
        if self.trains:
            case.train(peft)
        else:
            case.logits(peft)
        for name, parameter, before in frozen:
            expect_same(parameter.data, before, f"{case}: {name}, which is frozen")

    @pytest.mark.parametrize("mode", ["evaluation", "training"])
    def test_gradients_agree_with_differences(self, case: Case, mode: str) -> None:
        """Each of its weights has the loss's gradient, and so has what lies before it.

        In training mode the dropout rates are 0.
        """
        case = case.with_dropout(0.0)
        base = case.base(np.float64)
        embedding = dict(base.named_parameters())["embed_tokens.weight"]
        peft = case.adapt(base)
        case.shake(peft)
        if mode == "training":
            peft.train()
        checked = _trainable(peft)
        embedding.requires_grad = True
        for name, parameter in {**checked, "the token embedding": embedding}.items():
            try:
                check_gradients(
                    _loss_of(case, peft), [parameter], step=3e-6, tolerance=1e-5, directions=1
                )
            except AssertionError as error:
                raise AssertionError(
                    f"{case}: the gradient of {name} in {mode} mode: {error}"
                ) from None

    def test_no_parameter_is_hidden(self, case: Case) -> None:
        """After training, each parameter is in a field or in a list of the module tree."""
        peft = case.adapt(case.base())
        if self.trains:
            case.train(peft)
        case.logits(peft)
        hidden = peft.base_model.hidden_parameters()
        expect(
            not hidden,
            f"{case}: neither trained nor saved are the parameters in {', '.join(hidden)}",
        )

    def test_the_same_seed_gives_the_same_weights(self, case: Case) -> None:
        """Twice the same seed, twice the same model, bit for bit."""
        first, second = (case.adapt(case.base(), seed=3).base_model for _ in range(2))
        expected, got = first.state_dict(), second.state_dict()
        expect(list(got) == list(expected), f"{case}: the same seed gives other parameters")
        for name, array in expected.items():
            expect_same(got[name], array, f"{case}: {name} from the same seed")

    def test_the_closed_form_count_is_the_real_one(self, case: Case) -> None:
        """The plugin counts, from sizes alone, what the model has."""
        real = case.adapt(case.base()).get_nb_trainable_parameters()
        counted = count_recipe(case.shape, [case.config], case.host)
        expect(
            counted == real,
            f"{case}: (trainable, all) is {real} in the model and {counted} by count_parameters",
        )


def _trainable(peft: PeftModel) -> dict[str, Parameter]:
    return {name: p for name, p in peft.base_model.named_parameters() if p.requires_grad}


def _loss_of(case: Case, peft: PeftModel) -> Callable[[Tensor], Tensor]:
    """The loss on the case's batch, as a function of a weight that it reads by itself."""
    return lambda _: peft.loss(case.ids, case.labels)
