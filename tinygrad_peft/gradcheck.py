"""Check pullbacks against central differences."""

from collections.abc import Callable, Sequence

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.tensor import Tensor, no_grad

__all__ = ["check_gradients"]

_TINY = float(np.finfo(np.float64).tiny)


def check_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    seed: int = 0,
    directions: int = 3,
) -> float:
    """Return the largest relative error of the gradients of `function(*inputs)`.

    Each input that requires a gradient must be float64. For a random u of the output's shape and a
    few random v of each input's, ⟨v, Jᵀu⟩ from `backward` is compared with
    ⟨u, f(x + hv) - f(x - hv)⟩ / 2h, so that the cost does not grow with the sizes.

    An error is relative to the largest of both values and ‖Jᵀu‖, but at least to
    1e-4 ⟨|u|, |f(x)|⟩: below it the differences are rounding.

    Raises:
        AssertionError: an error is above `tolerance`; the message has both values.
        TypeError: an input that requires a gradient is not float64.

    >>> x = Tensor(np.array([0.5, 2.0]), requires_grad=True)
    >>> check_gradients(lambda x: x.log() * x, [x]) < 1e-8
    True
    """
    rng = np.random.default_rng(seed)
    checked = [i for i, t in enumerate(inputs) if t.requires_grad]
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise TypeError(f"input {i}: expected float64, got {inputs[i].dtype}")
        inputs[i].grad = None
    output = function(*inputs)
    u = np.asarray(rng.standard_normal(output.shape))
    floor = max(1e-4 * float((abs(u) * abs(output.data)).sum()), _TINY)
    output.backward(u)
    worst = 0.0
    for i in checked:
        grad = inputs[i].grad
        analytic = np.zeros(inputs[i].shape) if grad is None else grad
        for _ in range(directions):
            v = np.asarray(rng.standard_normal(inputs[i].shape))
            numeric = _difference(function, inputs, i, v, u, step)
            exact = float((v * analytic).sum())
            size = max(abs(exact), abs(numeric), float(np.linalg.norm(analytic)), floor)
            error = abs(exact - numeric) / size
            worst = max(worst, error)
            if not error <= tolerance:
                raise AssertionError(
                    f"input {i} of shape {inputs[i].shape}: backward gives {exact:.10g}, "
                    f"differences give {numeric:.10g}, relative error {error:.2g} > {tolerance:g}"
                )
    return worst


def _difference(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    index: int,
    v: Array,
    u: Array,
    step: float,
) -> float:
    """⟨u, f(x + hv) - f(x - hv)⟩ / 2h along v of one input, which is restored."""
    tensor, original = inputs[index], inputs[index].data
    values = []
    try:
        for sign in (1, -1):
            tensor.data = original + sign * step * v
            with no_grad():
                values.append(function(*inputs).data)
    finally:
        tensor.data = original
    return float((u * (values[0] - values[1])).sum()) / (2 * step)
