import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.nn import (
    Init,
    Linear,
    Module,
    Parameter,
    Skeleton,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.nn.module import count_elements
from tinygrad_peft.tensor import Tensor


class Pair(Module):
    """A weight, a child, and a list of children, in this order."""

    def __init__(self) -> None:
        self.scale = Parameter([1.0, 2.0])
        self.first = Linear(2, 3)
        self.rest: list[Linear] = [Linear(3, 3, bias=False), Linear(3, 1)]
        self.size = 7
        self.constant = Tensor([1.0])


def shapes(module: Module) -> dict[str, tuple[int, ...]]:
    return {path: parameter.shape for path, parameter in module.named_parameters()}


def test_names_are_the_fields_in_order() -> None:
    assert list(shapes(Pair()).items()) == [
        ("scale", (2,)),
        ("first.weight", (3, 2)),
        ("first.bias", (3,)),
        ("rest.0.weight", (3, 3)),
        ("rest.1.weight", (1, 3)),
        ("rest.1.bias", (1,)),
    ]
    assert [path for path, _ in Pair().named_modules()] == ["", "first", "rest.0", "rest.1"]
    assert [path for path, _ in Pair().named_modules("top")][:2] == ["top", "top.first"]
    assert count_elements(Pair().parameters()) == 2 + 6 + 3 + 9 + 3 + 1


def test_a_shared_weight_is_listed_once() -> None:
    pair = Pair()
    pair.rest.append(Linear.of(pair.first.weight))

    assert shapes(pair) == shapes(Pair())
    assert len(list(pair.parameters())) == 6


def test_children_are_replaced_by_name() -> None:
    pair, layer = Pair(), Linear(3, 5)
    pair.set_child("rest.1", layer)
    pair.set_child("first", layer)

    assert pair.rest[1] is pair.first is pair.get_child("first") is layer


@pytest.mark.parametrize("name", ["second", "rest", "rest.2", "rest.-1", "scale", "size", ""])
def test_an_unknown_child_cannot_be_replaced(name: str) -> None:
    with pytest.raises(KeyError):
        Pair().set_child(name, Linear(1, 1))
    with pytest.raises(KeyError):
        Pair().get_child(name)


# ---------- lists, and places outside the tree ----------


class Listed(Module):
    """Parameters and modules in one list."""

    def __init__(self) -> None:
        self.parts = [Parameter([1.0]), Linear(2, 2, bias=False), None, Parameter([2.0, 3.0])]


def test_parameters_in_a_list_are_weights_as_modules_are_children() -> None:
    listed = Listed()
    assert shapes(listed) == {"parts.0": (1,), "parts.3": (2,), "parts.1.weight": (2, 2)}
    listed.freeze()
    assert not any(parameter.requires_grad for parameter in listed.parameters())
    listed.load_state_dict({path: np.full(s, 7.0) for path, s in shapes(listed).items()})
    assert all((array == 7).all() for array in listed.state_dict().values())
    assert listed.hidden_parameters() == []


def test_a_copy_with_other_weights_shares_the_rest_and_leaves_the_original() -> None:
    listed, new = Listed(), Parameter([5.0])
    twin = listed.with_own_parameters({"parts.0": new})
    assert twin.parts[0] is new
    assert listed.parts[0] is not new
    assert twin.parts[1:] == listed.parts[1:]


@dataclass(frozen=True)
class Factors:
    """A dataclass with a weight in it."""

    down: Parameter


HIDDEN: dict[str, Callable[[Parameter], object]] = {
    "a tuple": lambda parameter: (parameter,),
    "a dict": lambda parameter: {"query": parameter},
    "the keys of a dict": lambda parameter: {parameter: "query"},
    "a set": lambda parameter: {parameter},
    "a list in a list": lambda parameter: [[parameter]],
    "a dict in a list": lambda parameter: [{"down": parameter}],
    "a dataclass": Factors,
    "a dataclass in a list": lambda parameter: [Factors(parameter)],
    "a module in a dict": lambda parameter: {"layer": Linear.of(parameter)},
    "modules in a tuple": lambda parameter: (Linear.of(parameter), Linear(1, 1)),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_parameters_outside_the_tree_are_found_by_field(place: str) -> None:
    parameter = Parameter([[1.0, 2.0]])
    pair = Pair()
    pair.rest[1].extra = HIDDEN[place](parameter)  # type: ignore[attr-defined]
    assert pair.hidden_parameters() == ["rest.1.extra"]
    pair.scale = parameter
    own = [] if "tuple" not in place or "modules" not in place else ["rest.1.extra"]
    assert pair.hidden_parameters() == own, "what is in the tree as well is not hidden"


def test_weights_of_another_tree_may_be_referred_to() -> None:
    pair, other = Pair(), Pair()
    pair.other = (other, {"scale": other.scale})  # type: ignore[attr-defined]
    assert pair.hidden_parameters() == ["other"]
    assert pair.hidden_parameters(known=other.parameters()) == []


def test_settings_hide_no_parameters() -> None:
    config = TransformerConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=4,
    )
    assert Transformer(config).hidden_parameters() == []


# ---------- modes ----------


def test_modes_reach_the_whole_tree() -> None:
    pair = Pair()
    assert all(module.training for _, module in pair.named_modules())
    pair.eval()
    assert not any(module.training for _, module in pair.named_modules())
    pair.train()
    assert all(module.training for _, module in pair.named_modules())
    assert shapes(pair) == shapes(Pair()), "a mode is not in the tree"


def test_a_frozen_model_collects_no_gradient() -> None:
    pair = Pair()
    assert all(parameter.requires_grad for parameter in pair.parameters())
    pair.freeze()

    assert not any(parameter.requires_grad for parameter in pair.parameters())
    assert not pair.first(Tensor([[1.0, 2.0]])).requires_grad


def test_weights_saved_and_loaded_are_the_same() -> None:
    pair, other = Pair(), Pair()
    for i, parameter in enumerate(pair.parameters()):
        parameter.data = np.full(parameter.shape, i, np.float32)
    other.load_state_dict(pair.state_dict())

    assert list(other.state_dict()) == list(pair.state_dict())
    for path, array in other.state_dict().items():
        np.testing.assert_array_equal(array, pair.state_dict()[path])


def test_loaded_weights_take_the_dtype_of_the_model() -> None:
    pair = Pair()
    pair.load_state_dict({path: np.zeros(shape) for path, shape in shapes(pair).items()})

    assert {parameter.dtype for parameter in pair.parameters()} == {np.dtype(np.float32)}


def test_one_error_lists_every_mismatch_and_nothing_changes() -> None:
    pair = Pair()
    state = pair.state_dict()
    before = dict(state)
    state["first.wieght"] = state.pop("first.weight")
    state["rest.0.weight"] = np.zeros((3, 2), np.float32)
    state["scale"] = np.zeros(2, np.float32)
    with pytest.raises(CheckpointError) as error:
        pair.load_state_dict(state)

    assert str(error.value).splitlines() == [
        "the weights do not fit the model:",
        "  - missing: first.weight (3, 2); did you mean 'first.wieght'?",
        "  - unexpected: first.wieght (3, 2)",
        "  - wrong shape: rest.0.weight is (3, 2), expected (3, 3)",
    ]
    assert all(array is before[path] for path, array in pair.state_dict().items())


def test_a_skeleton_of_70_billion_weights_takes_no_memory_and_no_time() -> None:
    config = TransformerConfig(
        vocab_size=128_256,
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28_672,
        max_position_embeddings=8192,
        norm="rms_norm",
        positions="rotary",
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    )
    tracemalloc.start()
    start = time.process_time()
    model = Transformer(config, Skeleton())
    total = count_elements(model.parameters())
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert total == 70_553_706_496
    assert peak < 20_000_000
    assert seconds < 5, "it takes about 0.1; materialised, it would not end"
    assert model.state_dict()["lm_head.weight"].shape == (128_256, 8192)


def test_constants_have_their_value_except_in_a_skeleton() -> None:
    np.testing.assert_array_equal(Init(0, np.float64).constant(2, value=0.1), [0.1, 0.1])
    assert Skeleton().constant(10**15, value=0.1).shape == (10**15,)


def test_a_skeleton_waits_for_weights() -> None:
    layer = Linear(2, 3, init=Skeleton())
    weights = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
    layer.load_state_dict(weights)

    assert layer.weight.data is weights["weight"]
    np.testing.assert_array_equal(layer(Tensor([[1.0, 2.0]])).data, [[3, 3, 3]])


def test_a_weight_takes_over_data_of_another_shape_and_drops_its_gradient() -> None:
    trained, frozen = Parameter(np.ones(3)), Parameter(np.ones(3), requires_grad=False)
    trained.grad = np.ones(3)
    for weight in (trained, frozen):
        weight.replace_data(np.zeros((2, 2)))
    assert trained.shape == frozen.shape == (2, 2)
    assert trained.requires_grad
    assert not frozen.requires_grad
    (trained * 3.0 + 1.0).sum().backward()
    np.testing.assert_array_equal(trained.grad, np.full((2, 2), 3.0))
