"""The random generators that a model's modules draw from, such as those of dropout.

A state of NumPy's default generator (PCG64; O'Neill 2014) is six numbers of 64 bits: the upper and
lower half of its state and of its increment, and a number of 32 bits that is left over, with a flag
that says if there is one.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.errors import CheckpointError, TrainingError, listed
from tinygrad_peft.nn.module import Module, mismatches

__all__ = ["generator_states", "restore_generators"]

_LOW = 2**64 - 1
_SHAPE = (6,)


def generator_states(model: Module) -> dict[str, AnyArray]:
    """Return the state of each generator in a field of a module, by its path: (6,) uint64.

    Raises TrainingError for generators of a kind whose state is not known here.
    """
    found = dict(_generators(model))
    unknown = [
        f"{path}: a {type(generator.bit_generator).__name__}"
        for path, generator in found.items()
        if not isinstance(generator.bit_generator, np.random.PCG64)
    ]
    if unknown:
        raise TrainingError(
            "random generators: expected those of numpy.random.default_rng, "
            f"whose state can be saved, got\n{listed(unknown)}"
        )
    return {path: _packed(generator) for path, generator in found.items()}


def restore_generators(model: Module, states: Mapping[str, AnyArray]) -> None:
    """Put all generators into the states that `generator_states` returned.

    Raises CheckpointError that lists every missing, unexpected and impossible state; then nothing
    has changed.
    """
    found = dict(_generators(model))
    problems = mismatches(
        dict.fromkeys(found, _SHAPE), {path: state.shape for path, state in states.items()}
    )
    problems = problems or [
        f"{path}: not a state of PCG64" for path, state in states.items() if not _is_state(state)
    ]
    if problems:
        raise CheckpointError(f"the random generators do not fit the model:\n{listed(problems)}")
    for path, generator in found.items():
        high, low, high_step, low_step, has_rest, rest = map(int, states[path])
        generator.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": high << 64 | low, "inc": high_step << 64 | low_step},
            "has_uint32": has_rest,
            "uinteger": rest,
        }


def _generators(model: Module) -> Iterator[tuple[str, np.random.Generator]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, np.random.Generator):
                yield f"{path}.{name}" if path else name, value


def _packed(generator: np.random.Generator) -> AnyArray:
    whole = generator.bit_generator.state
    state, step = whole["state"]["state"], whole["state"]["inc"]
    rest = (whole["has_uint32"], whole["uinteger"])
    return np.array((state >> 64, state & _LOW, step >> 64, step & _LOW, *rest), np.uint64)


def _is_state(state: AnyArray) -> bool:
    """Return True for numbers that PCG64 can have: its increment is odd."""
    if state.dtype != np.uint64:
        return False
    _, _, _, low_step, has_rest, rest = map(int, state)
    return low_step % 2 == 1 and has_rest <= 1 and rest < 2**32
