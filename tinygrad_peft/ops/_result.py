"""Types of the values and pullbacks that ops return.

A plain op takes bare arrays and returns its value and one pullback for each of them:

    def mul(a: Array, b: Array) -> Result:
        left, right = a.shape, b.shape
        return a * b, (lambda g: unbroadcast(g * b, left), lambda g: unbroadcast(g * a, right))

`apply` drops the pullbacks of the inputs that need no gradient, and with them all they hold.

A fused op is for gradients that share work. Its first argument says which inputs need one, so that
it keeps and computes nothing for the others. It returns one pullback for all: new arrays, which
`backward` may add into, and None for the inputs that need none.
"""

from collections.abc import Callable
from typing import TypeAlias

from tinygrad_peft.arrays import Array

Needs: TypeAlias = tuple[bool, ...]
Pullback: TypeAlias = Callable[[Array], Array]
JointPullback: TypeAlias = Callable[[Array], tuple[Array | None, ...]]
Result: TypeAlias = tuple[Array, tuple[Pullback, ...]]
FusedResult: TypeAlias = tuple[Array, JointPullback]
