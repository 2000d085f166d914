"""Module and Parameter: a tree of typed fields.

A module's fields are its tree. One rule holds for both kinds of node: a Parameter or a Module is
part of the tree if it stands in a field, or in a list in a field. All else is a setting. Names are
the fields' own, in the order of assignment; those in a list are `name.0`, `name.1`, ...

Parameters anywhere else, as in a dict, a tuple, a list in a list or a dataclass, are outside the
tree: they would be neither trained nor saved. `hidden_parameters` finds them, and a module that has
some is refused where a method puts it into a model.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import CheckpointError, hinted, listed
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
    packed_elements: int = 0  # weights that are not parameters, such as 4-bit ones

    # ---------- the tree ----------

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Iterate over the direct children with their names."""
        return ((name, node) for name, node in self._nodes() if isinstance(node, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Iterate over this module and all below it, parents first, with their dotted paths."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Iterate over the weights of this module itself, without its children's."""
        return ((name, node) for name, node in self._nodes() if isinstance(node, Parameter))

    def _nodes(self) -> Iterator[tuple[str, object]]:
        """Iterate over what may be part of the tree: each field, or the items of a list."""
        for name, value in vars(self).items():
            if isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            else:
                yield name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Iterate over all weights with their paths; a shared one comes once, by its first path."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, parameter in module.own_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Iterate over all weights, a shared one once."""
        return (parameter for _, parameter in self.named_parameters())

    def get_child(self, name: str) -> "Module":
        """Return the direct child of that name. Raises KeyError for an unknown name."""
        child = vars(self).get(name)  # all but those in lists
        return child if isinstance(child, Module) else dict(self.children())[name]

    def set_child(self, name: str, module: "Module") -> None:
        """Replace the direct child of that name. Raises KeyError for an unknown name."""
        self.get_child(name)
        _put(self, name, module)

    def with_own_parameters(self, replaced: Mapping[str, Parameter]) -> Self:
        """Copy the module with some of its own weights replaced; all else is shared."""
        return self._with(replaced)

    def with_children(self, replaced: Mapping[str, "Module"]) -> Self:
        """Copy the module with some of its direct children replaced; all else is shared."""
        return self._with(replaced)

    def _with(self, replaced: "Mapping[str, Module] | Mapping[str, Parameter]") -> Self:
        twin = copy.copy(self)
        for name, value in vars(twin).items():
            if isinstance(value, list):
                vars(twin)[name] = list(value)
        for name, node in replaced.items():
            _put(twin, name, node)
        return twin

    def hidden_parameters(self, known: Iterable[Parameter] = ()) -> list[str]:
        """Find parameters that the tree misses, and return the paths of the fields they are in.

        They are looked for in lists, tuples, sets, mappings and dataclasses, however nested, and in
        modules that stand there. Those in `known`, of another tree, are not hidden.
        """
        found = {id(parameter) for parameter in chain(self.parameters(), known)}
        return [
            f"{path}.{name}" if path else name
            for path, module in self.named_modules()
            for name, value in vars(module).items()
            if any(id(parameter) not in found for parameter in _parameters_in(value))
        ]

    def count(self) -> int:
        """Count the elements of all weights of the tree, shared ones once."""
        packed = sum(module.packed_elements for _, module in self.named_modules())
        return packed + count_elements(self.parameters())

    # ---------- modes ----------

    def train(self, *, mode: bool = True) -> None:
        """Switch training mode (dropout) on or off in the whole tree."""
        for _, module in self.named_modules():
            module.training = mode

    def eval(self) -> None:
        """Switch training mode off in the whole tree."""
        self.train(mode=False)

    def freeze(self) -> None:
        """Exclude every weight of the tree from training."""
        for parameter in self.parameters():
            parameter.requires_grad = False

    # ---------- weights ----------

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of all weights by path: not copies."""
        return {path: parameter.data for path, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Replace the weights by the arrays of `state`, which are not copied where dtypes agree.

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
    """List what is missing, unexpected, or of another shape, one sentence each."""
    missing = [path for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    return [
        *(
            f"missing: {path} {expected[path]}{near}"
            for path, near in hinted(missing, unexpected, 1)
        ),
        *(f"unexpected: {path} {found[path]}" for path in unexpected),
        *(
            f"wrong shape: {path} is {found[path]}, expected {shape}"
            for path, shape in expected.items()
            if path in found and found[path] != shape
        ),
    ]


def count_elements(parameters: Iterable[Tensor]) -> int:
    """Sum the sizes."""
    return sum(p.size for p in parameters)


def _put(module: Module, name: str, node: Module | Parameter) -> None:
    field, _, index = name.partition(".")
    if index:
        vars(module)[field][int(index)] = node
    else:
        setattr(module, field, node)


def _parameters_in(value: object) -> Iterator[Parameter]:
    """Iterate over the parameters in a field's value, however deep in containers they are."""
    if isinstance(value, Parameter):
        yield value
    elif isinstance(value, Module):
        yield from value.parameters()
    else:
        for item in _items(value):
            yield from _parameters_in(item)


def _items(value: object) -> Iterable[object]:
    """Return the items of a container or dataclass; nothing for any other value."""
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, list | tuple | AbstractSet):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [getattr(value, field.name, None) for field in fields]
    return ()
