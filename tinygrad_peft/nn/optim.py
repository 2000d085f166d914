"""Optimisers: they update weights in place, a cache-sized block at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tinygrad_peft.arrays import (
    BLOCK_ELEMENTS,
    AnyArray,
    Array,
    BoolArray,
    IntArray,
    Shape,
    blocks,
)
from tinygrad_peft.errors import CheckpointError, ConfigError, TrainingError, listed
from tinygrad_peft.nn.module import Parameter, mismatches

__all__ = ["SGD", "AdamW", "Optimizer", "clip_grad_norm"]


class Optimizer(ABC):
    """The base: which weights are trained, and what is remembered about each.

    Of the parameters given, those that require a gradient are trained, each once. A step leaves
    those alone that have no gradient then. `lr` may be set between steps; for the parameters in
    `factors` it is multiplied by theirs. Raises TrainingError where nothing requires a gradient.
    """

    lr: float

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        lr: float,
        factors: Mapping[Parameter, float] | None,
        moments: tuple[str, ...],
    ) -> None:
        given = list(dict.fromkeys(parameters))
        self.parameters = [p for p in given if p.requires_grad]
        if not self.parameters:
            raise TrainingError(
                f"nothing to train: of {len(given)} parameters given, none requires a gradient"
            )
        own = factors or {}
        self.factors = [own.get(p, 1.0) for p in self.parameters]
        _require_rates(lr=lr, **{f"factors[{i}]": f for i, f in enumerate(self.factors)})
        self.lr = lr
        for parameter in self.parameters:
            _make_writable(parameter)
        self.moments = {name: [np.zeros_like(p.data) for p in self.parameters] for name in moments}
        self.steps = np.zeros(len(self.parameters), np.int64)
        widest = max(_row_size(p.data) for p in self.parameters)
        largest = max(p.size for p in self.parameters)
        # float64 bytes, seen as whichever dtype a weight has
        self._bytes = np.empty(min(largest, max(widest, BLOCK_ELEMENTS)), np.float64)

    def step(self) -> None:
        """Move each weight that has a gradient."""
        for i, parameter in enumerate(self.parameters):
            grad = parameter.grad
            if grad is None:
                continue
            _make_writable(parameter)
            self.steps[i] += 1
            moments = [arrays[i] for arrays in self.moments.values()]
            if any(moment.shape != parameter.shape for moment in moments):
                raise TrainingError(
                    f"a weight changed its shape from {moments[0].shape} to {parameter.shape}: "
                    "shrink it by keep_rows"
                )
            lr, count = self.lr * self.factors[i], int(self.steps[i])
            for piece, *rest in _pieces(parameter.data, grad, *moments):
                self.update(piece, *rest, lr=lr, count=count)

    @abstractmethod
    def update(self, weight: Array, grad: Array, /, *moments: Array, lr: float, count: int) -> None:
        """Move a block of one weight, in place, on the `count`-th step that it takes part in."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = None

    def keep_rows(self, parameter: Parameter, kept: IntArray | BoolArray, *, axis: int = 0) -> None:
        """Shrink a weight to some of its rows along `axis`, with all that is remembered about it.

        `kept` are the places of the rows that stay, or a mask. The gradient is dropped. Raises
        TrainingError for a weight that this optimiser does not train.
        """
        i = next((i for i, p in enumerate(self.parameters) if p is parameter), None)
        if i is None:
            raise TrainingError("keep_rows: expected a weight that this optimiser trains")
        rows = (*(slice(None),) * axis, kept)
        parameter.replace_data(parameter.data[rows].copy())
        for arrays in self.moments.values():
            arrays[i] = arrays[i][rows].copy()

    def scratch(self, like: Array) -> Array:
        """An array of the shape and dtype of `like`, whose content nobody needs."""
        return self._bytes.view(like.dtype)[: like.size].reshape(like.shape)

    def state_dict(self) -> dict[str, AnyArray]:
        """What a later run needs to go on: the arrays themselves, not copies."""
        named = {
            f"{name}.{i}": array
            for name, arrays in self.moments.items()
            for i, array in enumerate(arrays)
        }
        return {"steps": self.steps, **named}

    def load_state_dict(self, state: Mapping[str, AnyArray]) -> None:
        """Copy in what `state_dict` gave for the same parameters in the same order.

        Raises CheckpointError that lists every missing, unexpected and mis-shaped array; then
        nothing has changed.
        """
        own = self.state_dict()
        problems = mismatches(_shapes(own), _shapes(state))
        if problems:
            raise CheckpointError(f"the state does not fit the optimiser:\n{listed(problems)}")
        for name, array in own.items():
            array[...] = state[name]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2).

        θ ← θ - lr λ θ
        m ← β₁ m + (1 - β₁) g              v ← β₂ v + (1 - β₂) g²
        θ ← θ - lr m̂ / (√v̂ + ε)            m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

    with decay λ on every weight, biases and norms too, and the decay scaled by lr, as in PyTorch.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        lr: float = 1e-3,
        factors: Mapping[Parameter, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        _require_rates(eps=eps, weight_decay=weight_decay)
        _require_below_one(beta1=betas[0], beta2=betas[1])
        super().__init__(parameters, lr=lr, factors=factors, moments=("exp_avg", "exp_avg_sq"))
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    def update(self, weight: Array, grad: Array, /, *moments: Array, lr: float, count: int) -> None:
        """One line of Algorithm 2 after the other."""
        first, second = moments
        (beta1, beta2), work = self.betas, self.scratch(weight)
        if self.weight_decay:
            weight *= 1 - lr * self.weight_decay
        _average(first, beta1, np.multiply(grad, 1 - beta1, out=work))
        np.multiply(grad, grad, out=work)
        work *= 1 - beta2
        _average(second, beta2, work)
        np.sqrt(second, out=work)
        work *= 1 / math.sqrt(1 - beta2**count)
        work += self.eps
        np.divide(first, work, out=work)
        work *= lr / (1 - beta1**count)
        weight -= work


class SGD(Optimizer):
    """Stochastic gradient descent with momentum μ and L2 weight decay λ, as in PyTorch.

    g ← g + λ θ;  m ← μ m + g;  θ ← θ - lr m
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        lr: float,
        factors: Mapping[Parameter, float] | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        _require_rates(weight_decay=weight_decay)
        _require_below_one(momentum=momentum)
        moments = ("momentum",) if momentum else ()
        super().__init__(parameters, lr=lr, factors=factors, moments=moments)
        self.momentum = momentum
        self.weight_decay = weight_decay

    def update(self, weight: Array, grad: Array, /, *moments: Array, lr: float, count: int) -> None:  # noqa: ARG002 - no bias to correct
        """The three assignments in their order."""
        work = self.scratch(weight)
        np.multiply(weight, self.weight_decay, out=work)
        work += grad
        for velocity in moments:
            _average(velocity, self.momentum, work)
            work[...] = velocity
        work *= lr
        weight -= work


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """The 2-norm of all gradients together, which are scaled in place to at most `max_norm`.

    g ← g min(1, max_norm / (norm + 10⁻⁶)), as in PyTorch. `max_norm` may be inf: nothing is
    scaled. A norm that is not finite is returned as it is, and scales nothing.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    share = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and share < 1:
        for grad in grads:
            np.multiply(grad, share, out=grad)
    return norm


# ---------- blocks ----------


def _pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Views of the same rows of arrays of one shape, few enough to stay in the cache."""
    matrices = [a.reshape(1) if a.ndim == 0 else a for a in arrays]
    for block in blocks(len(matrices[0]), _row_size(matrices[0])):
        yield tuple([a[block] for a in matrices])


def _row_size(array: Array) -> int:
    return math.prod(array.shape[1:])


def _average(mean: Array, decay: float, term: Array) -> None:
    mean *= decay
    mean += term


def _make_writable(parameter: Parameter) -> None:
    # A checkpoint's weights may be a read-only view of its file.
    if not parameter.data.flags.writeable:
        parameter.data = parameter.data.copy()


def _shapes(state: Mapping[str, AnyArray]) -> dict[str, Shape]:
    return {name: array.shape for name, array in state.items()}


# ---------- settings ----------


def _require_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not (rate >= 0 and math.isfinite(rate)):
            raise ConfigError(f"{name}: expected a finite number of at least 0, got {rate}")


def _require_below_one(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name}: expected at least 0 and below 1, got {rate}")
