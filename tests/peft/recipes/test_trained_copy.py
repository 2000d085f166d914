import numpy as np

from tinygrad_peft.nn import Dropout, LayerNorm, Linear, Parameter
from tinygrad_peft.peft import trained_copy, with_trained_bias


def frozen(layer: Linear) -> Linear:
    layer.freeze()
    return layer


def test_a_copy_has_trained_weights_of_its_own() -> None:
    base = frozen(Linear(2, 3))
    copied = trained_copy(base)
    assert isinstance(copied, Linear)
    assert [p.requires_grad for p in copied.parameters()] == [True, True]
    copied.weight.data += 1
    assert not np.array_equal(copied.weight.data, base.weight.data)
    assert not any(p.requires_grad for p in base.parameters())


def test_weights_that_are_not_named_are_shared() -> None:
    base = frozen(Linear(2, 3))
    copied = with_trained_bias(base)
    assert isinstance(copied, Linear)
    assert copied.weight is base.weight
    assert isinstance(copied.bias, Parameter)
    assert copied.bias is not base.bias


def test_arrays_are_shared_until_others_take_their_place() -> None:
    base = LayerNorm(4)
    copied = trained_copy(base, fresh=False)
    assert isinstance(copied, LayerNorm)
    assert copied.weight is not base.weight
    assert copied.weight.data is base.weight.data


def test_modules_without_weights_are_not_copied() -> None:
    assert trained_copy(Dropout(0.1)) is None
    assert with_trained_bias(Linear(2, 3, bias=False)) is None


def test_weights_in_a_list_are_copied_in_a_list_of_the_copys_own() -> None:
    base = Linear(2, 3)
    base.factors = [Parameter([1.0]), Parameter([2.0])]  # type: ignore[attr-defined]
    copied = trained_copy(base, ["factors.1"])
    assert isinstance(copied, Linear)
    own, others = dict(copied.own_parameters()), dict(base.own_parameters())
    assert own["factors.1"] is not others["factors.1"]
    assert own["factors.0"] is others["factors.0"]
