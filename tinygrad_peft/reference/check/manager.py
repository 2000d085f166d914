"""9.11: several LoRA adapters on one base.

The exercise leaves open what the weights of an adapter look like, and where the results are. Each
usual form is tried, and the results are looked for in all the places where they can be.
"""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.check.comparing import Different, call, equal, hold, method_of
from tinygrad_peft.reference.check.finding import arrays_of, values_of
from tinygrad_peft.reference.lora import LoRALayer

__all__ = ["check_manager"]

BASE = {"q": (4, 5), "v": (3, 5)}
RANKS = {"polite": 2, "brief": 3}
SHARES = [0.7, 0.3]


class _Factors(NamedTuple):
    A: Array
    B: Array
    scaling: float

    @property
    def update(self) -> Array:
        """s B A, (out, in)."""
        return self.scaling * self.B @ self.A


_Adapter: TypeAlias = Mapping[str, _Factors]
_Form: TypeAlias = Callable[[_Factors], object]


def _layer(factors: _Factors) -> LoRALayer:
    (rank, in_features), out_features = factors.A.shape, len(factors.B)
    layer = LoRALayer(in_features, out_features, rank, factors.scaling * rank)
    layer.A, layer.B = factors.A, factors.B
    return layer


FORMS: Mapping[str, _Form] = {
    "(A, B, scaling)": lambda f: (f.A, f.B, f.scaling),
    "a dict of A, B and scaling": lambda f: {"A": f.A, "B": f.B, "scaling": f.scaling},
    "a LoRALayer": _layer,
    "(A, B)": lambda f: (f.scaling * f.A, f.B),
    "a dict of A and B": lambda f: {"A": f.scaling * f.A, "B": f.B},
    "the update": lambda f: f.update,
}


def check_manager(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check LoRAManager with each form of weights, until it is right with one."""
    base = {name: rng.standard_normal(shape) for name, shape in BASE.items()}
    for same_rank in (True, False):
        adapters = {
            name: _random_adapter(2 if same_rank else rank, rng) for name, rank in RANKS.items()
        }
        faults: list[Different] = []
        for told, form in FORMS.items():
            try:
                _Trial(solution, told, form, base, adapters).run()
            except Different as fault:
                faults.append(fault)
            else:
                break
        else:
            # Of a form that the solution does not take, it raises: not the fault to tell of.
            raise next((f for f in faults if ": raises" not in str(f)), faults[0])


def _random_adapter(rank: int, rng: np.random.Generator) -> _Adapter:
    return {
        name: _Factors(
            rng.standard_normal((rank, in_features)), rng.standard_normal((out_features, rank)), 0.5
        )
        for name, (out_features, in_features) in BASE.items()
    }


class _Trial:
    """A run through the exercise with weights in one form."""

    def __init__(
        self,
        solution: ModuleType,
        told: str,
        form: _Form,
        base: Mapping[str, Array],
        adapters: Mapping[str, _Adapter],
    ) -> None:
        self.solution, self.told, self.form = solution, told, form
        self.base, self.adapters = base, adapters
        self.given: dict[str, Array] = {}

    def run(self) -> None:
        """Check each method on a manager of its own."""
        self.check_switching()
        self.check_merging()
        self.check_combining()

    def manager(self) -> Any:  # noqa: ANN401 - the solution's own class
        """Make a manager with both adapters."""
        self.given = {name: W.copy() for name, W in self.base.items()}
        manager = call("LoRAManager(base)", self.solution.LoRAManager, self.given)
        add = method_of("LoRAManager", manager, "add_adapter")
        for name, adapter in self.adapters.items():
            weights = {weight: self.form(factors) for weight, factors in adapter.items()}
            call(
                f"LoRAManager.add_adapter({name!r}, weights, each {self.told})", add, name, weights
            )
        return manager

    def weights(self, manager: object) -> Iterator[Mapping[str, Array]]:
        """Yield the base from both its places: the caller's dict, and the manager's."""
        yield self.given
        base = getattr(manager, "base_model", None)
        if isinstance(base, Mapping):
            yield base

    def has(self, manager: object, expected: Mapping[str, Array]) -> bool:
        """Tell if the base equals these weights, in either place."""
        return any(
            all(equal(np.asarray(found.get(name)), W) for name, W in expected.items())
            for found in self.weights(manager)
            if set(expected) <= set(found)
        )

    def with_update(self, name: str) -> dict[str, Array]:
        """Add an adapter's update to the base."""
        return {w: self.base[w] + f.update for w, f in self.adapters[name].items()}

    def check_switching(self) -> None:
        """Look for the active adapter's name, or for its update in the base."""
        manager = self.manager()
        switch = method_of("LoRAManager", manager, "switch_adapter")
        for name in ("polite", "brief", "polite"):
            told = f"LoRAManager.switch_adapter({name!r})"
            call(told, switch, name)
            active = any(value == name for _, value in values_of(manager) if isinstance(value, str))
            if not active and not self.has(manager, self.with_update(name)):
                raise Different(
                    f"{told}: expected an attribute with that name, or base_model with that "
                    "adapter's update, found neither"
                )

    def check_merging(self) -> None:
        """Look for the update in the base."""
        manager = self.manager()
        told = "LoRAManager.merge_adapter('brief')"
        call(told, method_of("LoRAManager", manager, "merge_adapter"), "brief")
        expected = self.with_update("brief")
        if self.has(manager, expected):
            return
        *_, found = self.weights(manager)
        for name, W in expected.items():
            A, B, scaling = self.adapters["brief"][name]
            mistakes = [
                ("the scaling is left out", self.base[name] + B @ A),
                ("nothing is merged", self.base[name]),
                ("the base weight is left out", scaling * B @ A),
                ("the update is merged twice", W + scaling * B @ A),
            ]
            hold(f"base_model[{name!r}] after {told}, W + s B A", found.get(name), W, mistakes)

    def check_combining(self) -> None:
        """Look for the weighted sum: returned, kept as an adapter, or in the base."""
        manager = self.manager()
        before = {id(f.array) for f in arrays_of(manager)}
        names = list(self.adapters)
        told = f"LoRAManager.combine_adapters({names}, {SHARES})"
        combine = method_of("LoRAManager", manager, "combine_adapters")
        returned = call(told, combine, names, list(SHARES))
        sums = {w: self.weighted_sum(w) for w in self.base}
        if self.has(manager, {w: self.base[w] + update for w, update in sums.items()}):
            return
        new = [f.array for f in arrays_of([manager, returned]) if id(f.array) not in before]
        if not new:
            raise Different(
                f"{told}: expected the weighted sum of the updates, as a new adapter or in "
                "base_model, found nothing new"
            )
        for name, update in sums.items():
            self.hold_combination(f"{told}, its update of {name!r}", name, new, update)

    def weighted_sum(self, weight: str) -> Array:
        """Compute Σ c s B A."""
        parts = zip(SHARES, self.adapters.values(), strict=True)
        return sum((c * adapter[weight].update for c, adapter in parts), np.zeros(BASE[weight]))

    def hold_combination(self, told: str, name: str, new: list[Array], update: Array) -> None:
        """Hold a new update, or the product of new factors, against the sum."""
        out_features, in_features = update.shape
        found = [W for W in new if W.shape == update.shape]
        found += [
            B @ A
            for A in new
            for B in new
            if A.shape[1:] == (in_features,) and B.shape == (out_features, len(A))
        ]
        factors = [adapter[name] for adapter in self.adapters.values()]
        found += [factors[0].scaling * product for product in found]
        if any(equal(product, update) for product in found):
            return
        if not found:
            has = ", ".join(str(array.shape) for array in new)
            raise Different(f"{told}: expected B A of shape {update.shape}, found arrays {has}")
        if len({len(f.A) for f in factors}) == 1:
            mean_A = np.average([f.A for f in factors], axis=0, weights=SHARES)
            mean_B = np.average([f.B for f in factors], axis=0, weights=SHARES)
            averaged = factors[0].scaling * mean_B @ mean_A
            wrong = (
                "the A's and the B's are averaged: that multiplies Bᵢ and Aⱼ of different adapters"
            )
            for product in found:
                if equal(product, averaged):
                    hold(told, product, update, [(wrong, averaged)])
        plain = np.sum([f.update for f in factors], axis=0)
        hold(told, found[0], update, [("the weights are not used", plain)])
