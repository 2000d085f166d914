"""The graph behind a tensor: the recorded nodes, and the walk back through them.

A node holds the nodes of the inputs that need a gradient and the pullback to them, and nothing
else. Arrays that only frozen inputs would need are freed as soon as the value is computed, and so
is every intermediate array that no pullback closes over.
"""

from collections.abc import Callable
from threading import Lock

import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import GraphError, ShapeError

__all__ = ["Leaf", "Node", "walk"]

_adding = Lock()  # several threads may add to one leaf


class Node:
    """One application of an op: its differentiable inputs, and the pullback to them."""

    __slots__ = ("fresh", "parents", "pull")

    def __init__(
        self,
        parents: tuple["Node", ...],
        pull: Callable[[Array], tuple[Array, ...]] | None,
        *,
        fresh: bool,
    ) -> None:
        self.parents = parents
        self.pull = pull
        self.fresh = fresh  # `pull` returns new arrays, which may be added into


class Leaf(Node):
    """A tensor that collects its gradient."""

    __slots__ = ("grad", "shape")

    def __init__(self, shape: Shape) -> None:
        super().__init__((), None, fresh=False)
        self.shape = shape
        self.grad: Array | None = None

    def accumulate(self, grad: Array, *, owned: bool) -> None:
        """Add a gradient to `grad`, in place where possible."""
        if grad.shape != self.shape:
            raise ShapeError(f"gradient: expected shape {self.shape}, got {grad.shape}")
        with _adding:
            if self.grad is not None:
                self.grad += grad
            elif owned and isinstance(grad, np.ndarray):
                self.grad = grad
            else:
                self.grad = np.array(grad, order="C")


def walk(root: Node, seed: Array) -> None:
    """Pull `seed` back from the root to the leaves: each node once, after all that use it.

    A gradient is stored with a flag: it may be added into if this walk made it, or if a fused op
    returned it.
    """
    waiting = _uses(root)
    grads: dict[Node, tuple[Array, bool]] = {root: (seed, False)}
    ready = [root]
    while ready:
        node = ready.pop()
        grad, owned = grads.pop(node)
        if isinstance(node, Leaf):
            node.accumulate(grad, owned=owned)
            continue
        assert node.pull is not None  # _uses has checked it
        parts, parents, fresh = node.pull(grad), node.parents, node.fresh
        node.pull, node.parents = None, ()
        del grad
        for parent, part in zip(parents, parts, strict=True):
            held = grads.get(parent)
            grads[parent] = (part, fresh) if held is None else _add(*held, part, fresh=fresh)
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
        del parts


def _uses(root: Node) -> dict[Node, int]:
    """Count how often each node below the root is an input; an explicit stack, for deep graphs.

    Raises GraphError if part of the graph was walked before; no leaf has changed then.
    """
    uses: dict[Node, int] = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.pull is None and not isinstance(node, Leaf):
            raise GraphError("this graph was walked before: compute the value again")
        for parent in node.parents:
            if parent in uses:
                uses[parent] += 1
            else:
                uses[parent] = 1
                stack.append(parent)
    return uses


def _add(a: Array, a_owned: bool, b: Array, *, fresh: bool) -> tuple[Array, bool]:  # noqa: FBT001
    """a + b, in place in either one that may be written to."""
    if a_owned and a.flags.writeable:
        a += b
        return a, True
    if fresh and b.flags.writeable:
        b += a
        return b, True
    return a + b, True
