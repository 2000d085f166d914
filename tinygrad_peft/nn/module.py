"""Module and Parameter: a tree of typed fields.

A module's fields are its tree: a Parameter is a weight, a Module (or a list of them) is a child,
and all else is a setting. Names are the fields' own, in the order of assignment.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import LISTED, CheckpointError, listed, nearest
from tinygrad_peft.tensor import Tensor

__all__ = ["Module", "Parameter", "mismatches"]


class Parameter(Tensor):
    """A weight: a leaf tensor that is trained unless `requires_grad` is switched off."""

    __slots__ = ()

    def __init__(self, data: npt.ArrayLike, *, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)

    def replace_data(self, data: Array) -> None:
        """Take over other values, which may have another shape; the gradient is dropped."""
        trained = self.requires_grad
        self.requires_grad = False
        self.data = data
        self.requires_grad = trained  # a new leaf, of the new shape


class Module:
    """The base of every layer and model.

    It declares no `__call__`: each layer types its own.
    """

    training: bool = True
    packed_elements: int = 0  # weights that are stored otherwise than as parameters, as 4-bit ones

    # ---------- the tree ----------

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """The direct children with their names; those in a list are `name.0`, `name.1`, ..."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, parents first, with their dotted paths."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The weights of this module itself, without its children's."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All weights with their dotted paths; a shared one once, under its first path."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, parameter in module.own_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """All weights, a shared one once."""
        return (parameter for _, parameter in self.named_parameters())

    def get_child(self, name: str) -> "Module":
        """The direct child of that name. Raises KeyError where there is none."""
        child = vars(self).get(name)  # as a rule; only those in lists have other names
        return child if isinstance(child, Module) else dict(self.children())[name]

    def set_child(self, name: str, module: "Module") -> None:
        """Put `module` where the direct child of that name stands. Raises KeyError if none does."""
        self.get_child(name)
        field, _, index = name.partition(".")
        if index:
            vars(self)[field][int(index)] = module
        else:
            setattr(self, field, module)

    def count(self) -> int:
        """How many elements all weights of the tree have, shared ones once."""
        packed = sum(module.packed_elements for _, module in self.named_modules())
        return packed + count_elements(self.parameters())

    # ---------- modes ----------

    def train(self, *, mode: bool = True) -> None:
        """Switch training mode (dropout) on, or off, in the whole tree."""
        for _, module in self.named_modules():
            module.training = mode

    def eval(self) -> None:
        """Switch training mode off in the whole tree."""
        self.train(mode=False)

    def freeze(self) -> None:
        """No weight of the tree is trained from now on."""
        for parameter in self.parameters():
            parameter.requires_grad = False

    # ---------- weights ----------

    def state_dict(self) -> dict[str, Array]:
        """The arrays of all weights by path: not copies."""
        return {path: parameter.data for path, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over the arrays of `state`, which become the weights: no copy where dtypes agree.

        Raises CheckpointError that lists every missing, unexpected and mis-shaped array; then
        nothing has changed.
        """
        parameters = dict(self.named_parameters())
        shapes = {path: parameter.shape for path, parameter in parameters.items()}
        problems = mismatches(shapes, {path: array.shape for path, array in state.items()})
        if problems:
            raise CheckpointError(f"the weights do not fit the model:\n{listed(problems)}")
        for path, parameter in parameters.items():
            parameter.data = np.asarray(state[path], parameter.dtype)


def mismatches(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """What is missing, unexpected, or of another shape, one sentence each."""
    missing = [path for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    guessed = frozenset(missing[:LISTED])  # of those that no message shows, no name is looked for
    return [
        *(
            f"missing: {path} {expected[path]}"
            f"{nearest(path, unexpected, 1) if path in guessed else ''}"
            for path in missing
        ),
        *(f"unexpected: {path} {found[path]}" for path in unexpected),
        *(
            f"wrong shape: {path} is {found[path]}, expected {shape}"
            for path, shape in expected.items()
            if path in found and found[path] != shape
        ),
    ]


def count_elements(parameters: Iterable[Tensor]) -> int:
    """Σ of the sizes."""
    return sum(p.size for p in parameters)
