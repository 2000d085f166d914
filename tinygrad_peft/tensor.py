"""Tensor: an array, and the graph that computed it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinygrad_peft import ops
from tinygrad_peft.arrays import Array, Shape, as_float
from tinygrad_peft.errors import GraphError, ShapeError
from tinygrad_peft.graph import Leaf, Node, walk

__all__ = ["Tensor", "apply", "apply_fused", "no_grad"]

_recording: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing within the block, or within the function that it decorates."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Tensor:
    """A float array that records what is computed from it.

    `data` is the array: float32, or float64 if given as float64. `requires_grad=True` makes the
    tensor a leaf that collects `grad`, an array of the same shape.
    """

    __slots__ = ("__weakref__", "data", "node")
    __array_ufunc__ = None  # ndarray + Tensor asks Tensor.__radd__, and np.exp(tensor) is an error

    def __init__(self, data: npt.ArrayLike, *, requires_grad: bool = False) -> None:
        self.data: Array = as_float(data)
        self.node: Node | None = Leaf(self.data.shape) if requires_grad else None

    # ---------- what it is ----------

    @property
    def requires_grad(self) -> bool:
        """True if a gradient reaches this tensor."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and not isinstance(self.node, Leaf):
            raise GraphError("requires_grad can be set only on a leaf: use detach()")
        if wanted != self.requires_grad:
            self.node = Leaf(self.data.shape) if wanted else None

    @property
    def grad(self) -> Array | None:
        """The gradient collected so far: an array of the tensor's shape, or None."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if not isinstance(self.node, Leaf):
            raise GraphError("grad can be set only on a leaf that requires a gradient")
        self.node.grad = value

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 or float64."""
        return self.data.dtype

    def numpy(self) -> Array:
        """Return a read-only view of the array."""
        view = self.data.view()
        view.flags.writeable = False
        return view

    def item(self) -> float:
        """Return the only element as a Python number."""
        return float(self.data.item())

    def detach(self) -> "Tensor":
        """Return a tensor with the same array, cut off from the graph."""
        return _wrap(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))

    # Hidden from type checkers, which would take a Tensor for an array wherever it has one.
    if not TYPE_CHECKING:

        def __array__(self, dtype: object = None, copy: object = None) -> Array:
            raise TypeError(
                "expected an array, got a Tensor, which would lose its gradient: use numpy()"
            )

    def __deepcopy__(self, memo: dict[int, object]) -> "Tensor":
        if self.node is not None and not isinstance(self.node, Leaf):
            raise GraphError("only a leaf or a detached tensor can be copied: use detach()")
        copied = type(self).__new__(type(self))
        copied.data = self.data.copy()
        copied.node = None
        if self.node is not None:
            copied.requires_grad = True
            copied.grad = None if self.node.grad is None else self.node.grad.copy()
        return copied

    def __repr__(self) -> str:
        tail = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, precision=4, threshold=20)}{tail})"

    # ---------- arithmetic ----------

    def __add__(self, other: "Tensor | npt.ArrayLike") -> "Tensor":
        return apply(ops.add, self, self._other(other))

    def __radd__(self, other: npt.ArrayLike) -> "Tensor":
        return apply(ops.add, self._other(other), self)

    def __sub__(self, other: "Tensor | npt.ArrayLike") -> "Tensor":
        return apply(ops.sub, self, self._other(other))

    def __rsub__(self, other: npt.ArrayLike) -> "Tensor":
        return apply(ops.sub, self._other(other), self)

    def __mul__(self, other: "Tensor | npt.ArrayLike") -> "Tensor":
        return apply(ops.mul, self, self._other(other))

    def __rmul__(self, other: npt.ArrayLike) -> "Tensor":
        return apply(ops.mul, self._other(other), self)

    def __truediv__(self, other: "Tensor | npt.ArrayLike") -> "Tensor":
        return apply(ops.div, self, self._other(other))

    def __rtruediv__(self, other: npt.ArrayLike) -> "Tensor":
        return apply(ops.div, self._other(other), self)

    def __pow__(self, exponent: float) -> "Tensor":
        return apply(ops.power, self, exponent=float(exponent))

    def __neg__(self) -> "Tensor":
        return apply(ops.neg, self)

    def __matmul__(self, other: "Tensor | npt.ArrayLike") -> "Tensor":
        return apply(ops.matmul, self, self._other(other))

    def __rmatmul__(self, other: npt.ArrayLike) -> "Tensor":
        return apply(ops.matmul, self._other(other), self)

    def _other(self, value: "Tensor | npt.ArrayLike") -> "Tensor":
        """Wrap the other operand; a plain number takes this tensor's dtype."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, int | float):
            return _wrap(np.asarray(value, self.data.dtype))
        return Tensor(value)

    # ---------- functions ----------

    def exp(self) -> "Tensor":
        """eˣ."""
        return apply(ops.exp, self)

    def log(self) -> "Tensor":
        """ln x."""
        return apply(ops.log, self)

    def sqrt(self) -> "Tensor":
        """√x."""
        return apply(ops.sqrt, self)

    def tanh(self) -> "Tensor":
        """tanh x."""
        return apply(ops.tanh, self)

    # ---------- shape and reductions ----------

    def __getitem__(self, index: ops.Index) -> "Tensor":
        return apply(ops.getitem, self, index=index)

    def reshape(self, *shape: int) -> "Tensor":
        """Reshape without changing the values; one size may be -1."""
        return apply(ops.reshape, self, shape=shape)

    def transpose(self, *axes: int) -> "Tensor":
        """Reorder the axes; without any given, reverse them."""
        return apply(ops.transpose, self, axes=axes or None)

    def sum(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> "Tensor":
        """Σ x over the axes, all by default."""
        return apply(ops.sum, self, axis=axis, keepdims=keepdims)

    def mean(
        self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False
    ) -> "Tensor":
        """Σ x / n over the axes, all by default."""
        return apply(ops.mean, self, axis=axis, keepdims=keepdims)

    # ---------- backward ----------

    def backward(self, grad: Array | None = None) -> None:
        """Add the gradient of this tensor, weighted by `grad`, to the `grad` of every leaf.

        `grad` is 1 by default, for a tensor of one element. The graph is released on the way.

        Raises:
            GraphError: nothing trainable led to this tensor, or part of its graph was walked
                before.
            ShapeError: `grad` has another shape, or is missing for more than one element.
        """
        if self.node is None:
            raise GraphError("nothing to differentiate: no input requires a gradient")
        if grad is None:
            if self.size != 1:
                raise ShapeError(f"backward: pass grad for a tensor of shape {self.shape}")
            grad = np.ones_like(self.data)
        seed = np.asarray(grad, self.data.dtype)
        if seed.shape != self.shape:
            raise ShapeError(f"gradient: expected shape {self.shape}, got {seed.shape}")
        walk(self.node, seed)


def apply(op: Callable[..., ops.Result], *inputs: Tensor, **settings: object) -> Tensor:
    """Apply a plain op; the pullbacks of frozen inputs are dropped."""
    value, pullbacks = op(*[t.data for t in inputs], **settings)
    if not _recording.get():
        return _wrap(value)
    kept = [
        (t.node, t.data.dtype, pullback)
        for t, pullback in zip(inputs, pullbacks, strict=True)
        if t.node is not None
    ]
    if not kept:
        return _wrap(value)
    parents, used = tuple([node for node, _, _ in kept]), [(d, p) for _, d, p in kept]
    return _wrap(
        value, Node(parents, lambda g: tuple([_in(d, p(g)) for d, p in used]), fresh=False)
    )


def apply_fused(
    op: Callable[..., ops.FusedResult], *inputs: Tensor | None, **settings: object
) -> Tensor:
    """Apply a fused op; an input may be left out as None."""
    recording = _recording.get()
    needs = tuple([recording and t is not None and t.node is not None for t in inputs])
    value, joint = op(needs, *[None if t is None else t.data for t in inputs], **settings)
    if not any(needs):
        return _wrap(value)
    kept = [(t.node, t.data.dtype) for t in inputs if t is not None and t.node is not None]
    parents, dtypes = tuple([node for node, _ in kept]), [dtype for _, dtype in kept]

    def pull(g: Array) -> tuple[Array, ...]:
        parts = [part for part in joint(g) if part is not None]
        return tuple([_in(d, part) for d, part in zip(dtypes, parts, strict=True)])

    return _wrap(value, Node(parents, pull, fresh=True))


def _in(dtype: np.dtype[np.floating], grad: Array) -> Array:
    """Cast a gradient to its tensor's dtype, which mixing float32 with float64 changes."""
    return grad if grad.dtype == dtype else grad.astype(dtype)


def _wrap(data: Array, node: Node | None = None) -> Tensor:
    """Wrap an op's value without a copy; a NumPy scalar becomes an array again."""
    tensor = Tensor.__new__(Tensor)
    tensor.data = data if isinstance(data, np.ndarray) else np.asarray(data)
    tensor.node = node
    return tensor
