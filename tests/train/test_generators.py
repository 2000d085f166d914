"""The states of random generators."""

import numpy as np
import pytest

from tests.train.toys import adapted, classifier
from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, TrainingError
from tinygrad_peft.nn import Linear, Module
from tinygrad_peft.train.generators import generator_states, restore_generators


class Noisy(Module):
    """A module of somebody else's with a generator of its own."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.noise = generator
        self.parts = [Linear(2, 2)]


def test_generators_of_all_modules_are_found_by_their_paths() -> None:
    paths = generator_states(adapted(model=classifier(dropout=0.1)))
    assert any(path.endswith("q_proj.dropout.rng") for path in paths)
    assert generator_states(Noisy(np.random.default_rng(1))).keys() == {"noise"}


def test_a_restored_generator_draws_the_same_numbers() -> None:
    one, other = np.random.default_rng(7), np.random.default_rng(8)
    one.random(3, np.float32)  # leaves half of a number over
    states = generator_states(Noisy(one))
    assert states["noise"].tolist()[4] == 1
    restore_generators(Noisy(other), states)
    assert np.array_equal(one.random(5, np.float32), other.random(5, np.float32))
    assert one.bit_generator.state == other.bit_generator.state


def test_a_generator_of_another_kind_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"numpy\.random\.default_rng.*\n  - noise: a MT19937"):
        generator_states(Noisy(np.random.Generator(np.random.MT19937(0))))


GOOD = generator_states(Noisy(np.random.default_rng(0)))["noise"]


def changed(place: int, value: int) -> AnyArray:
    state = GOOD.copy()
    state[place] = value
    return state


@pytest.mark.parametrize(
    "state",
    [GOOD.astype(np.int64), changed(3, 2), changed(4, 2), changed(5, 2**32)],
    ids=["dtype", "even increment", "flag", "rest"],
)
def test_a_state_that_a_generator_cannot_have_is_an_error(state: AnyArray) -> None:
    model = Noisy(np.random.default_rng(3))
    before = model.noise.bit_generator.state
    with pytest.raises(CheckpointError, match=r"\n  - noise: not a state of PCG64"):
        restore_generators(model, {"noise": state})
    assert model.noise.bit_generator.state == before


def test_all_missing_and_unexpected_states_are_listed() -> None:
    with pytest.raises(CheckpointError) as error:
        restore_generators(Noisy(np.random.default_rng(3)), {"voice": GOOD, "other": GOOD[:2]})
    assert str(error.value).splitlines() == [
        "the random generators do not fit the model:",
        "  - missing: noise (6,); did you mean 'voice'?",
        "  - unexpected: voice (6,)",
        "  - unexpected: other (2,)",
    ]
