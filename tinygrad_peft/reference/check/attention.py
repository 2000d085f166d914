"""9.9: multi-head attention with LoRA on some of its projections."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.attention import LoRAMultiHeadAttention
from tinygrad_peft.reference.check.comparing import (
    Different,
    Mistake,
    call,
    equal,
    hold,
    method_of,
    shapes,
)
from tinygrad_peft.reference.check.finding import Found, arrays_of, fill, scaling_of, values_of
from tinygrad_peft.reference.lora import LoRALinear

__all__ = ["check_attention"]

PROJECTIONS = ("q", "k", "v", "o")
WORDS = {"q": "query", "k": "key", "v": "value", "o": "out"}
# (d_model, n_heads, rank, target_modules) and (batch, seq)
CASES = [
    ((8, 2, 3, ["q", "v"]), (2, 4)),
    ((6, 3, 2, ["q", "k", "v", "o"]), (1, 5)),
    ((4, 1, 1, ["o"]), (3, 2)),
]


class _Weights(NamedTuple):
    """The arrays of one attention by projection: W (d, d), A (r, d) and B (d, r).

    paths: where the solution has each W.
    """

    W: Mapping[str, Array]
    A: Mapping[str, Array]
    B: Mapping[str, Array]
    scaling: float
    paths: Mapping[str, str]

    def turned(self) -> "_Weights":
        """Return the same for a solution that computes x W where the reference has x Wᵀ."""
        return self._replace(W={name: W.T for name, W in self.W.items()})

    def attention(self, heads: int) -> LoRAMultiHeadAttention:
        """Return the reference's attention with these weights."""
        d, rank = len(self.W["q"]), len(next(iter(self.A.values())))
        layer = LoRAMultiHeadAttention(
            d, heads, rank, tuple(self.A), self.scaling * rank, weights=self.W
        )
        for name, projection in layer.projections.items():
            if isinstance(projection, LoRALinear):
                projection.lora.A, projection.lora.B = self.A[name], self.B[name]
        return layer

    def merged(self, name: str) -> Array:
        """Return W + s B A, or W where there is no LoRA."""
        update = self.scaling * self.B[name] @ self.A[name] if name in self.A else 0.0
        merged: Array = self.W[name] + update
        return merged


def check_attention(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check forward with and without a mask, the count, and merging."""
    for (d, heads, rank, targets), (batch, seq) in CASES:
        where = f"LoRAMultiHeadAttention({d}, {heads}, {rank}, {targets})"
        layer = call(where, solution.LoRAMultiHeadAttention, d, heads, rank, list(targets))
        weights = _filled(where, layer, d, rank, targets, rng)
        x = rng.standard_normal((batch, seq, d))
        told = f"{where}.forward({shapes(x=x)})"
        forward = method_of(where, layer, "forward")
        y = call(told, forward, x)
        is_turned = equal(np.asarray(y), weights.turned().attention(heads).forward(x))
        if is_turned:
            weights = weights.turned()
        hold(told, y, weights.attention(heads).forward(x), _mistakes(weights, heads, x))
        _check_mask(where, layer, weights.attention(heads), x)
        _check_count(where, layer, 2 * rank * d * len(targets), 4 * d * d)
        call(f"{where}.merge_lora()", method_of(where, layer, "merge_lora"))
        _check_merged(where, layer, weights, is_turned=is_turned)
        told = f"{where}.forward(x) after merge_lora()"
        mistakes = [("the update counts twice: forward still adds it", _twice(weights, heads, x))]
        hold(told, call(told, forward, x), weights.attention(heads).forward(x), mistakes)


def _filled(
    where: str,
    layer: object,
    d: int,
    rank: int,
    targets: Sequence[str],
    rng: np.random.Generator,
) -> _Weights:
    """Fill the solution's own arrays, with numbers large enough for a softmax to matter."""
    W = _by_projection(where, layer, (d, d), "weights", PROJECTIONS)
    A = _by_projection(where, layer, (rank, d), "A of LoRA", targets)
    B = _by_projection(where, layer, (d, rank), "B of LoRA", targets)
    for found in B.values():
        if found.array.any():
            raise Different(
                f"{where}.{found.path}: expected zeros at the start, so that LoRA adds nothing"
            )
    for found in (*W.values(), *A.values(), *B.values()):
        fill(where, found, rng.standard_normal(found.array.shape))
    paths = {name: found.path for name, found in W.items()}
    return _Weights(_copies(W), _copies(A), _copies(B), scaling_of(layer, rank), paths)


def _copies(found: Mapping[str, Found]) -> dict[str, Array]:
    return {name: f.array.astype(np.float64) for name, f in found.items()}


def _by_projection(
    where: str, layer: object, shape: tuple[int, int], what: str, names: Iterable[str]
) -> dict[str, Found]:
    """Find an array of that shape for each projection: by name, or else in order."""
    names = [name for name in PROJECTIONS if name in names]
    found = [f for f in arrays_of(layer) if f.array.shape == shape]
    if len(found) != len(names):
        paths = ", ".join(f.path for f in found) or "none"
        raise Different(
            f"{where}: expected {len(names)} {what} of shape {shape} among its attributes, for "
            f"{', '.join(names)}, found {paths}"
        )
    called = {letter: f for f in found for letter in [_letter(f.path)] if letter}
    return called if set(called) == set(names) else dict(zip(names, found, strict=True))


def _letter(path: str) -> str | None:
    """Read the projection off a path: q off projections.q.weight, Wq, lora_A_q, q_proj, query."""
    parts = [part for part in re.split(r"[^a-z]+", path.casefold()) if part]
    letters = {
        letter
        for letter, word in WORDS.items()
        for part in parts
        if part in (letter, f"w{letter}", word) or part.startswith(word)
    }
    return letters.pop() if len(letters) == 1 else None


def _mistakes(weights: _Weights, heads: int, x: Array) -> list[Mistake]:
    """Compute the usual mistakes, with weights either way round."""
    return [m for w in (weights, weights.turned()) for m in _one_way(w, heads, x)]


def _one_way(weights: _Weights, heads: int, x: Array) -> list[Mistake]:
    d = x.shape[-1]

    def wrong(factor: float = 1.0, scaling: float = weights.scaling) -> Array:
        """Scale the scores, or the updates, otherwise."""
        W, B = dict(weights.W), dict(weights.B)
        W["q"] = W["q"] * factor
        if "q" in B:
            B["q"] = B["q"] * factor
        return weights._replace(W=W, B=B, scaling=scaling).attention(heads).forward(x)

    return [
        ("the scaling alpha / rank is left out", wrong(scaling=1.0)),
        ("LoRA's update is left out", wrong(scaling=0.0)),
        ("the scores are not divided by √d_head", wrong((d / heads) ** 0.5)),
        ("the scores are divided by √d_model, not √d_head", wrong(heads**-0.5)),
        ("the scores are divided by d_head, not its root", wrong((d / heads) ** -0.5)),
        (
            "the softmax runs over the queries, not over the keys",
            _by_hand(weights, heads, x, axis=-2),
        ),
        ("the softmax is missing", _by_hand(weights, heads, x, axis=None)),
        (
            "the heads are cut across the tokens: transpose after reshaping",
            _by_hand(weights, heads, x, across=True),
        ),
        ("the output projection is left out", _by_hand(weights, heads, x, project=False)),
    ]


def _by_hand(
    weights: _Weights,
    heads: int,
    x: Array,
    *,
    axis: int | None = -1,
    across: bool = False,
    project: bool = True,
) -> Array:
    """Compute attention with one thing in it wrong."""
    batch, seq, d = x.shape

    def cut(y: Array) -> Array:
        if across:
            return y.reshape(batch, heads, seq, -1)
        return y.reshape(batch, seq, heads, -1).swapaxes(1, 2)

    q, k, v = (cut(x @ weights.merged(name).T) for name in ("q", "k", "v"))
    p = q @ k.swapaxes(-1, -2) / (d / heads) ** 0.5
    if axis is not None:
        p = np.exp(p - p.max(axis=axis, keepdims=True))
        p = p / p.sum(axis=axis, keepdims=True)
    out = p @ v
    joined: Array = (out if across else out.swapaxes(1, 2)).reshape(x.shape)
    return joined @ weights.merged("o").T if project else joined


def _check_mask(where: str, layer: object, oracle: LoRAMultiHeadAttention, x: Array) -> None:
    """Check a causal mask, in any of the usual forms."""
    sees = np.tri(x.shape[1], dtype=bool)
    expected = oracle.forward(x, sees)
    told = f"{where}.forward(x, mask {sees.shape})"
    forms = [sees, np.where(sees, 0.0, -1e9), sees.astype(float), ~sees]
    faults = []
    for mask in forms:
        try:
            hold(told, call(told, method_of(where, layer, "forward"), x, mask), expected)
        except Different as fault:
            faults.append(fault)
        else:
            return
    unmasked = oracle.forward(x)
    y = call(told, method_of(where, layer, "forward"), x, forms[1])
    hold(f"{told}, causal, 0 and -1e9", y, expected, [("the mask is not used", unmasked)])
    raise faults[0]


def _check_count(where: str, layer: object, expected: int, frozen: int) -> None:
    told = f"{where}.count_trainable_params()"
    count = call(told, method_of(where, layer, "count_trainable_params"))
    mistakes = [
        ("the frozen weights are counted too", np.asarray(float(expected + frozen))),
        ("only A or only B is counted", np.asarray(expected / 2)),
    ]
    hold(told, count, np.asarray(float(expected)), mistakes)


def _check_merged(where: str, layer: object, weights: _Weights, *, is_turned: bool) -> None:
    d = len(weights.W["q"])
    at = {
        path: value
        for path, value in values_of(layer)
        if isinstance(value, np.ndarray) and value.shape == (d, d)
    }
    if set(weights.paths.values()) <= set(at):
        found = {name: (path, at[path]) for name, path in weights.paths.items()}
    else:  # elsewhere by now
        found = {**_by_projection(where, layer, (d, d), "weights", PROJECTIONS)}
    for name, (path, array) in found.items():
        expected = weights.merged(name)
        told = f"{where}.{path} after merge_lora()"
        mistakes = [
            ("the update is not merged", weights.W[name]),
            ("the scaling is left out", weights._replace(scaling=1.0).merged(name)),
        ]
        mistakes = [(text, wrong.T if is_turned else wrong) for text, wrong in mistakes]
        hold(told, array, expected.T if is_turned else expected, mistakes)


def _twice(weights: _Weights, heads: int, x: Array) -> Array:
    return weights._replace(scaling=2 * weights.scaling).attention(heads).forward(x)
