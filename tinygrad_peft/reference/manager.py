"""Several LoRA adapters on one base model.

    W + sᵢ Bᵢ Aᵢ                 adapter i, alone
    W + Σ cᵢ sᵢ Bᵢ Aᵢ            a weighted sum of several, which is again one adapter:

    A = [A₁; A₂; ...]                       (Σ rᵢ, in)
    B = [c₁ s₁ B₁, c₂ s₂ B₂, ...]           (out, Σ rᵢ)
    s = 1

so that B A = Σ cᵢ sᵢ Bᵢ Aᵢ exactly. Averaging the A's and the B's instead would add products Bᵢ Aⱼ
of adapters that never met.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Generic, TypeAlias, TypeGuard, TypeVar

import numpy as np

from tinygrad_peft.reference._basics import Array, unknown
from tinygrad_peft.reference.lora import LoRALayer, LoRALinear

__all__ = ["LoRAManager", "LoRAWeights"]

Update: TypeAlias = (
    LoRALayer | tuple[Array, Array] | tuple[Array, Array, float] | Mapping[str, Array | float]
)
# For each adapted weight: A (r, in), B (out, r) and the scaling, 1 if it is left out.
LoRAWeights: TypeAlias = Mapping[str, Update]
Host: TypeAlias = Array | LoRALinear
Model = TypeVar("Model")

COMBINED = "combined"
FORMS = '(A, B), (A, B, scaling), {"A": A, "B": B} or a LoRALayer'


class LoRAManager(Generic[Model]):
    """Named adapters on a base model, at most one of them active.

    base_model: weights by name, each a (out, in) array or a LoRALinear, in a mapping or as the
        attributes of an object. Other attributes, and arrays of another shape, are left alone.

    A LoRALinear computes with the active adapter as its `lora`. While no adapter is active, and
    where the active one has nothing, it has its own.

    `adapters` holds a LoRALayer for each adapted weight, by the adapter's name. It holds the layers
    and arrays that were added, not copies, so that their training goes on.

    Raises:
        ValueError: a base model without arrays and LoRALinears.
    """

    def __init__(self, base_model: Model) -> None:
        self.base_model = base_model
        self.adapters: dict[str, dict[str, LoRALayer]] = {}
        self.active: str | None = None
        self._own: dict[str, LoRALayer] = {}
        self._hosts()

    def add_adapter(self, name: str, lora_weights: LoRAWeights) -> None:
        """Keep an adapter under a free name. It is not active yet.

        lora_weights: for each weight (A, B), (A, B, scaling), {"A": A, "B": B} or a LoRALayer. A
            scaling that is left out is 1; the mapping may have it under "scaling".

        Raises:
            ValueError: a taken name or one that is not a str, and weights that do not fit the base
                model: all at once.
        """
        problems: list[str] = []
        if not isinstance(name, str):  # None is the base model alone
            problems.append(f"name: expected a str, got {_kind(name)}")
        elif name in self.adapters:
            problems.append(f"the name {name!r} is taken")
        layers: dict[str, LoRALayer] = {}
        if isinstance(lora_weights, Mapping):
            for weight, update in lora_weights.items():
                try:
                    layers[weight] = self._layer(weight, update)
                except ValueError as error:
                    problems.append(str(error))
        else:
            problems.append(
                f"expected a mapping from weights to {FORMS}, got {_kind(lora_weights)}"
            )
        if problems:
            raise ValueError(f"adapter {name!r}: {'; '.join(problems)}")
        self.adapters[name] = layers

    def switch_adapter(self, name: str | None) -> None:
        """Make an adapter the active one; None for the base model alone."""
        layers = {} if name is None else self._adapter(name)
        self.active = name
        for weight, host in self._hosts().items():
            if isinstance(host, LoRALinear):
                own = self._own.setdefault(weight, host.lora)
                host.lora = layers.get(weight, own)

    def forward(self, weight: str, x: Array) -> Array:
        """Compute a layer's output, with the active adapter: (..., in) -> (..., out)."""
        host = self._host(weight)
        if isinstance(host, LoRALinear):
            return host.forward(x)
        layer = self._active().get(weight)
        # y = x Wᵀ + s (x Aᵀ) Bᵀ
        return x @ host.T if layer is None else layer.forward(x, host)

    def weights(self) -> dict[str, Array]:
        """Return the weights that the model computes with now; the base stays as it is."""
        active = self._active()
        return {name: _adapted(host, active.get(name)) for name, host in self._hosts().items()}

    def merge_adapter(self, name: str) -> None:
        """Fold an adapter into the base model for good, in the caller's own arrays.

        The adapter is gone afterwards. If it was the active one, none is.

        Raises:
            ValueError: an unknown name, or arrays that cannot be written to, all of them. Nothing
                changes then.
        """
        layers = self._adapter(name)
        arrays = {weight: _matrix(host) for weight, host in self._hosts().items()}
        problems = [f"{w} is read-only" for w in layers if not arrays[w].flags.writeable]
        problems += [
            f"{w} shares its memory with {other}"
            for w in layers
            for other, array in arrays.items()
            if other != w and np.shares_memory(arrays[w], array)
        ]
        if problems:
            raise ValueError(
                f"base_model: expected an own array to write to, {'; '.join(problems)}"
            )
        for weight, layer in layers.items():
            # W + s B A
            arrays[weight][...] = layer.merge(arrays[weight])
        if self.active == name:
            self.switch_adapter(None)
        del self.adapters[name]

    def combine_adapters(
        self, names: Sequence[str], weights: Sequence[float], *, name: str | None = None
    ) -> None:
        """Sum the updates of adapters, each times its weight, and make the sum the active adapter.

        It is the sum of the products s B A and not their average: weights that add up to 1 average.

        name: the new adapter's name, which must be free; otherwise "combined", in the place of
            whatever has that name.

        Raises:
            ValueError: names and weights of different number, none at all, unknown names, weights
                that are not finite numbers, or a name that is taken: all at once.
        """
        missing = [n for n in names if n not in self.adapters]
        problems = [str(unknown("adapter", n, self.adapters)) for n in missing]
        if not names or len(names) != len(weights):
            problems.append(
                f"expected a weight for each name, "
                f"got {len(names)} names and {len(weights)} weights"
            )
        problems += [
            f"weights: expected finite numbers, got {c!r:.80}"
            for c in weights
            if not (isinstance(c, Real) and np.isfinite(c))
        ]
        if name in self.adapters:
            problems.append(f"the name {name!r} is taken")
        if problems:
            raise ValueError("; ".join(problems))
        parts = [(self.adapters[n], c) for n, c in zip(names, weights, strict=True)]
        adapted = dict.fromkeys(weight for layers, _ in parts for weight in layers)
        combined = {w: _sum((layers[w], c) for layers, c in parts if w in layers) for w in adapted}
        target = COMBINED if name is None else name
        self.adapters[target] = combined
        self.switch_adapter(target)

    def _adapter(self, name: str) -> dict[str, LoRALayer]:
        if name not in self.adapters:
            raise unknown("adapter", name, self.adapters)
        return self.adapters[name]

    def _active(self) -> dict[str, LoRALayer]:
        return {} if self.active is None else self.adapters[self.active]

    def _host(self, weight: str) -> Host:
        hosts = self._hosts()
        if weight not in hosts:
            raise unknown("weight", weight, hosts)
        return hosts[weight]

    def _hosts(self) -> dict[str, Host]:
        """Return the base model's matrices and layers, as the caller holds them now."""
        model = self.base_model
        items = model.items() if isinstance(model, Mapping) else _attributes(model)
        hosts = {name: v for name, v in items if isinstance(v, LoRALinear) or _is_matrix(v)}
        if not hosts:
            raise ValueError(
                "base_model: expected (out, in) arrays of floats or LoRALinears, in a mapping or "
                f"as an object's attributes, got {type(model).__name__} without any"
            )
        return hosts

    def _layer(self, weight: str, update: Update) -> LoRALayer:
        """Return an update as a layer, once it is known to fit its weight."""
        out_features, in_features = _matrix(self._host(weight)).shape
        A, B, scaling = _parts(weight, update)
        rank = len(A)
        if A.shape != (rank, in_features) or B.shape != (out_features, rank) or rank < 1:
            raise ValueError(
                f"{weight}: expected A (r, {in_features}) and B ({out_features}, r), "
                f"got {A.shape} and {B.shape}"
            )
        return update if isinstance(update, LoRALayer) else LoRALayer.of(A, B, scaling)


def _parts(weight: str, update: Update) -> tuple[Array, Array, float]:
    """Return (A, B, scaling) of an update in any of its forms."""
    A: object
    B: object
    scaling: object
    match update:
        case LoRALayer():
            return update.A, update.B, update.scaling
        case (A, B):
            scaling = 1.0
        case (A, B, scaling):
            pass
        case Mapping() if {"A", "B"} <= update.keys() <= {"A", "B", "scaling"}:
            A, B, scaling = update["A"], update["B"], update.get("scaling", 1.0)
        case _:
            A = B = scaling = None
    if _is_matrix(A) and _is_matrix(B) and isinstance(scaling, Real):
        return A, B, float(scaling)
    raise ValueError(f"{weight}: expected {FORMS}, got {_kind(update)}")


def _sum(parts: Iterable[tuple[LoRALayer, float]]) -> LoRALayer:
    """Return the adapter of Σ c s B A, from each layer and its c."""
    each = list(parts)
    # A = [A₁; A₂; ...]
    A = np.concatenate([layer.A for layer, _ in each], axis=0)  # (Σ r, in)
    # B = [c₁ s₁ B₁, c₂ s₂ B₂, ...]
    B = np.concatenate([c * layer.scaling * layer.B for layer, c in each], axis=1)  # (out, Σ r)
    return LoRALayer.of(A, B)


def _adapted(host: Host, layer: LoRALayer | None) -> Array:
    """Return a weight with the update that is active on it."""
    if isinstance(host, LoRALinear):
        return host.merge()[0]
    return host if layer is None else layer.merge(host)


def _matrix(host: Host) -> Array:
    return host.weight if isinstance(host, LoRALinear) else host


def _is_matrix(value: object) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f"


def _attributes(model: object) -> Iterator[tuple[str, object]]:
    names = (name for name in dir(model) if not name.startswith("_"))
    return ((name, getattr(model, name, None)) for name in names)


def _kind(value: object) -> str:
    """Describe what was given, briefly: a type, or the types in it."""
    match value:
        case np.ndarray():
            return f"an array of shape {value.shape} and dtype {value.dtype}"
        case tuple() | list():
            return f"({', '.join(_kind(part) for part in value)})"
        case Mapping():
            parts = (f"{key!r}: {_kind(part)}" for key, part in value.items())
            return f"{{{', '.join(parts)}}}"
    return type(value).__name__
