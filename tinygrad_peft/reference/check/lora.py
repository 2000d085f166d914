"""9.5, the LoRA layer, and 9.6, its gradients."""

from types import ModuleType

import numpy as np

from tinygrad_peft.reference._basics import Array, rows
from tinygrad_peft.reference.check.comparing import (
    Different,
    Mistake,
    call,
    hold,
    method_of,
    shapes,
    taken_from,
    wanted_by,
)
from tinygrad_peft.reference.check.finding import Found, arrays_of, fill, gradient, parameter
from tinygrad_peft.reference.lora import LoRALayer, lora_backward

__all__ = ["check_backward", "check_layer"]

# (in, out, rank, alpha) and the input's leading axes. The square weight comes first: there a factor
# on the wrong side still multiplies, so that its values tell which it is.
CASES = [
    ((4, 4, 2, 6.0), (2, 3)),
    ((5, 3, 2, 16.0), (2, 3)),
    ((3, 6, 1, 0.5), (4,)),
]


def check_layer(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check the start of LoRALayer, forward, merge, and backward if it has one."""
    for sizes, leading in CASES:
        in_features, out_features, rank, _ = sizes
        where = f"LoRALayer{sizes}"
        layer = call(where, solution.LoRALayer, *sizes)
        A, B = _factors(where, layer, in_features, out_features, rank)
        oracle = LoRALayer(*sizes, rng=rng)
        oracle.A = fill(where, A, rng.standard_normal(oracle.A.shape))
        oracle.B = fill(where, B, rng.standard_normal(oracle.B.shape))
        x = rng.standard_normal((*leading, in_features))
        W = rng.standard_normal((out_features, in_features))
        told = f"{where}.forward({shapes(x=x, W=W)})"
        y = call(told, method_of(where, layer, "forward"), x, W)
        hold(told, y, oracle.forward(x, W), _forward_mistakes(oracle, x, W))
        merged = call(f"{where}.merge(W)", method_of(where, layer, "merge", "merge_weights"), W)
        hold(f"{where}.merge(W)", merged, oracle.merge(W), _merge_mistakes(oracle, W))
        g = rng.standard_normal((*leading, out_features))
        _check_gradients(where, layer, oracle, g, x, W)


def _factors(
    where: str, layer: object, in_features: int, out_features: int, rank: int
) -> tuple[Found, Found]:
    """Find A and B of a fresh layer, which must start as the course starts them."""
    by_name = {f.path.casefold().removeprefix("lora_"): f.array for f in arrays_of(layer)}
    shape_A, shape_B = (rank, in_features), (out_features, rank)
    if {"a", "b"} <= set(by_name) and (by_name["a"].shape, by_name["b"].shape) == (
        shape_B,
        shape_A,
    ):
        raise Different(
            f"{where}: expected A {shape_A} and B {shape_B}, got A {shape_B} and B {shape_A}; "
            "A and B are swapped"
        )
    A = parameter(where, layer, "A", "(rank, in_features)", shape_A)
    B = parameter(where, layer, "B", "(out_features, rank)", shape_B)
    if B.array.any():
        swapped = "" if A.array.any() else "; A starts at zero instead: A and B are swapped"
        raise Different(
            f"{where}.{B.path}: expected zeros at the start, so that training begins at W, got "
            f"values up to {np.abs(B.array).max():.2g}{swapped}"
        )
    if not A.array.any():
        raise Different(
            f"{where}.{A.path}: expected random numbers at the start, got zeros; with B zero too, "
            "both gradients are zero and nothing is trained"
        )
    return A, B


def _forward_mistakes(layer: LoRALayer, x: Array, W: Array) -> list[Mistake]:
    base, low = x @ W.T, (x @ layer.A.T) @ layer.B.T
    square = layer.in_features == layer.out_features
    return [
        ("the scaling alpha / rank is left out", base + low),
        ("the scaling is rank / alpha", base + low / layer.scaling),
        ("the scaling is alpha, not alpha / rank", base + layer.scaling * len(layer.A) * low),
        ("the scaling is applied to the frozen path too", layer.scaling * (base + low)),
        ("the frozen path x Wᵀ is left out", layer.scaling * low),
        ("the low-rank path is left out", base),
        *(
            [
                ("W is not transposed", x @ W + layer.scaling * low),
                (
                    "A and B are swapped: B comes first",
                    base + layer.scaling * (x @ layer.B @ layer.A),
                ),
            ]
            if square
            else []
        ),
    ]


def _merge_mistakes(layer: LoRALayer, W: Array) -> list[Mistake]:
    delta = layer.B @ layer.A
    mistakes = [
        ("the scaling alpha / rank is left out", W + delta),
        ("W is left out", layer.scaling * delta),
        ("the update is left out", W),
    ]
    if W.shape[0] == W.shape[1]:
        mistakes.append(("A and B are swapped: (B A)ᵀ is added", W + layer.scaling * delta.T))
    return mistakes


def _check_gradients(
    where: str, layer: object, oracle: LoRALayer, g: Array, x: Array, W: Array
) -> None:
    """Check `backward`, which the exercise does not ask for, where a solution has it.

    It may have kept x and W, or may want to be given them.
    """
    backward = taken_from(layer, "backward")
    if backward is None:
        return
    expected = oracle.backward(g)
    told = f"{where}.backward({shapes(grad_output=g)})"
    through = _low_rank_path(oracle, g)
    frozen = expected - through
    hold(
        told,
        call(told, backward, *(g, x, W)[: wanted_by(backward)]),
        expected,
        [
            ("the scaling is forgotten in grad_x", frozen + through / oracle.scaling),
            ("the frozen path's grad_output @ W is left out", through),
            ("the low-rank path is left out", frozen),
        ],
    )
    for name, value in (("A", oracle.A_grad), ("B", oracle.B_grad)):
        found = gradient(layer, name)
        if found is not None:
            mistakes = [(f"the scaling is forgotten in grad_{name}", value / oracle.scaling)]
            hold(f"{where}.{found[0]}", found[1], value, mistakes)


def _low_rank_path(layer: LoRALayer, g: Array) -> Array:
    return layer.scaling * (g @ layer.B) @ layer.A


def check_backward(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check grad_A, grad_B and grad_x, one after another."""
    for (in_features, out_features, rank, alpha), leading in CASES:
        g = rng.standard_normal((*leading, out_features))
        x = rng.standard_normal((*leading, in_features))
        A, B = rng.standard_normal((rank, in_features)), rng.standard_normal((out_features, rank))
        scaling = alpha / rank
        where = f"lora_backward({shapes(grad_output=g, x=x, A=A, B=B)}, scaling={scaling:g})"
        found = call(where, solution.lora_backward, g, x, A, B, scaling)
        if not isinstance(found, tuple | list) or len(found) != 3:
            got = (
                f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
            )
            raise Different(f"{where}: expected (grad_A, grad_B, grad_x), got {got}")
        expected = lora_backward(g, x, A, B, scaling)
        mistakes = _backward_mistakes(g, x, A, B, scaling)
        for name, got, value in zip(mistakes, found, expected, strict=True):
            hold(f"{name} of {where}", got, value, mistakes[name])


def _backward_mistakes(
    g: Array, x: Array, A: Array, B: Array, scaling: float
) -> dict[str, list[Mistake]]:
    """Compute the usual mistakes in each gradient."""
    grads = dict(
        zip(("grad_A", "grad_B", "grad_x"), lora_backward(g, x, A, B, scaling), strict=True)
    )
    count = len(rows(x))
    mistakes: dict[str, list[Mistake]] = {
        name: [
            (f"the scaling is forgotten in {name}", value / scaling),
            (f"the scaling is applied twice in {name}", value * scaling),
        ]
        for name, value in grads.items()
    }
    for name, other in (("grad_A", "grad_B"), ("grad_B", "grad_A")):
        mistakes[name] += [
            (
                f"these are the values of {other}: the order is (grad_A, grad_B, grad_x)",
                grads[other],
            ),
            (f"{name} is transposed", grads[name].T),
            (
                f"{name} is averaged over the rows of x, where they are to be added",
                grads[name] / count,
            ),
        ]
    if x.ndim == 3:
        low, seen = scaling * (g @ B), x @ A.T
        text = "the gradients of the texts are kept apart, where they are to be added"
        mistakes["grad_A"].append((text, np.einsum("btr,bti->bri", low, x)))
        mistakes["grad_B"].append((text, scaling * np.einsum("bto,btr->bor", g, seen)))
    return mistakes
