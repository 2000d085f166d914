"""9.7, the adapter, and 9.8, the soft prompt."""

from types import ModuleType

import numpy as np

from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.activations import ACTIVATIONS
from tinygrad_peft.reference.adapter import Adapter
from tinygrad_peft.reference.check.comparing import (
    Different,
    Mistake,
    call,
    hold,
    method_of,
    shapes,
    taken_from,
)
from tinygrad_peft.reference.check.finding import Found, arrays_of, fill, gradient, parameter
from tinygrad_peft.reference.prompt import PromptTuning

__all__ = ["check_adapter", "check_prompt"]

ADAPTERS = [((6, 3), (2, 4)), ((5, 2), (3,)), ((4, 8), (2, 3))]
PROMPTS = [((6, 4), (2, 3)), ((3, 2), (3, 5)), ((5, 1), (1, 2))]
NEAR = 0.5  # how far a fresh adapter may move its input, as a share of it


def check_adapter(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check that Adapter starts near the identity, forward, and backward if it has one."""
    for sizes, leading in ADAPTERS:
        where = f"Adapter{sizes}"
        fresh = call(where, solution.Adapter, *sizes)
        x = rng.standard_normal((*leading, sizes[0]))
        told = f"{where}.forward({shapes(x=x)})"
        start = call(told, method_of(where, fresh, "forward"), x)
        adapter = call(where, solution.Adapter, *sizes)
        forward = method_of(where, adapter, "forward")
        oracle = _same_adapter(where, adapter, sizes, rng)
        hold(told, call(told, forward, x), oracle.forward(x), _adapter_mistakes(oracle, x))
        moved = np.linalg.norm(start - x) / np.linalg.norm(x)
        if moved > NEAR:
            raise Different(
                f"{where}: expected a start near the identity, got one that moves its input by "
                f"{moved:.0%}; the weights start too large"
            )
        _check_adapter_gradients(where, adapter, oracle, rng.standard_normal(x.shape))


def _same_adapter(
    where: str, adapter: object, sizes: tuple[int, int], rng: np.random.Generator
) -> Adapter:
    """Give the solution's adapter new weights, and return the reference's with the same."""
    d, m = sizes
    oracle = Adapter(*sizes, bias=True, rng=rng)
    found = {f.path: f for f in arrays_of(adapter)}
    for name, shape in (("W_down", (d, m)), ("W_up", (m, d))):
        weight = _matrix(where, found, name, shape)
        value = rng.standard_normal(shape)
        fill(where, weight, value if weight.array.shape == shape else value.T)
        setattr(oracle, name, value)
    for name, size in (("b_down", m), ("b_up", d)):
        biases = [f for f in found.values() if f.array.shape == (size,)]
        if len(biases) == 1:
            setattr(oracle, name, fill(where, biases[0], rng.standard_normal(size)))
    return oracle


def _matrix(where: str, found: dict[str, Found], name: str, shape: tuple[int, int]) -> Found:
    """Find a matrix by name, either way round, or else by shape."""
    part = name.removeprefix("W_")
    called = [f for f in found.values() if part in f.path.casefold() and f.array.ndim == 2]
    if len(called) == 1 and called[0].array.shape in (shape, shape[::-1]):
        return called[0]
    meaning = "(d_model, bottleneck)" if part == "down" else "(bottleneck, d_model)"
    return parameter(where, {path: f.array for path, f in found.items()}, name, meaning, shape)


def _adapter_mistakes(adapter: Adapter, x: Array) -> list[Mistake]:
    expected, h = adapter.forward(x), x @ adapter.W_down + adapter.b_down
    update = expected - x
    linear = h @ adapter.W_up + adapter.b_up
    return [
        ("the residual is missing: x is to be added", update),
        ("the activation is missing between down and up", x + linear),
        ("the activation is missing, and the residual", linear),
        ("the activation comes after up, where it belongs between", x + np.maximum(linear, 0)),
        ("the activation is applied to the sum too", np.maximum(expected, 0)),
        ("the residual is subtracted", update - x),
        *(
            (f"the activation is {name}, where the exercise has relu", x + y)
            for name, f in ACTIVATIONS.items()
            if name != "relu"
            for y in [f.value(h) @ adapter.W_up + adapter.b_up]
        ),
    ]


def _check_adapter_gradients(where: str, adapter: object, oracle: Adapter, g: Array) -> None:
    """Check `backward`, where a solution has it."""
    backward = taken_from(adapter, "backward")
    if backward is None:
        return
    expected = oracle.backward(g)
    told = f"{where}.backward({shapes(grad_output=g)})"
    inner = g @ oracle.W_up.T @ oracle.W_down.T
    mistakes = [
        ("the residual is missing: grad_output is to be added", expected - g),
        ("the activation's slope is missing", g + inner),
    ]
    hold(told, call(told, backward, g), expected, mistakes)
    for name in ("W_down", "W_up"):
        found = gradient(adapter, name)
        if found is not None:
            value = getattr(oracle, f"{name}_grad")
            at = f"{where}.{found[0]}"
            hold(at, _like(found[1], value), value)


def _like(got: object, value: Array) -> object:
    """Transpose a gradient whose matrix the solution has the other way round, by its shape."""
    turned = isinstance(got, np.ndarray) and got.shape == value.shape[::-1] != value.shape
    return got.T if turned and isinstance(got, np.ndarray) else got


def check_prompt(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check forward of PromptTuning, and backward if it has one."""
    for sizes, (batch, seq) in PROMPTS:
        d, n = sizes
        where = f"PromptTuning{sizes}"
        tuning = call(where, solution.PromptTuning, *sizes)
        found = parameter(where, tuning, "prompt", "(prompt_length, d_model)", (n, d))
        oracle = PromptTuning(*sizes, rng=rng)
        oracle.prompt = fill(where, found, rng.standard_normal((n, d)))
        x = rng.standard_normal((batch, seq, d))
        told = f"{where}.forward({shapes(input_embeddings=x)})"
        mistakes = _prompt_mistakes(oracle.prompt, x)
        y = call(told, method_of(where, tuning, "forward"), x)
        hold(told, y, oracle.forward(x), mistakes)
        backward = taken_from(tuning, "backward")
        if backward is not None:
            g = rng.standard_normal((batch, n + seq, d))
            told = f"{where}.backward({shapes(grad_output=g)})"
            wrong = [("these are the prompt's rows of grad_output", g[:, :n])]
            hold(told, call(told, backward, g), oracle.backward(g), wrong)
            _check_prompt_gradient(where, tuning, oracle, g)


def _prompt_mistakes(prompt: Array, x: Array) -> list[Mistake]:
    n = len(prompt)
    prompts = np.broadcast_to(prompt, (len(x), *prompt.shape))
    mistakes = [
        ("the prompt comes after the text, where it belongs before it", _joined(x, prompts)),
        ("the prompt replaces the text's first tokens", _joined(prompts, x[:, n:])),
        ("the prompt comes twice", _joined(prompts, prompts, x)),
        ("the text is missing", _joined(prompts)),
        ("the prompt is missing", x),
    ]
    if n == 1:
        mistakes.append(("the prompt is added to the tokens", x + prompt))
    return mistakes


def _joined(*parts: Array) -> Array:
    return np.concatenate(parts, axis=1)


def _check_prompt_gradient(where: str, tuning: object, oracle: PromptTuning, g: Array) -> None:
    found = gradient(tuning, "prompt")
    if found is None:
        return
    rows = g[:, : oracle.prompt_length]
    mistakes = [
        ("the texts of the batch are kept apart, where they are to be added", rows),
        ("the texts of the batch are averaged, where they are to be added", rows.mean(axis=0)),
        ("only the first text counts", rows[0]),
    ]
    hold(f"{where}.{found[0]}", found[1], oracle.prompt_grad, mistakes)
