"""9.12: weights of 4 bits, and LoRA on them."""

from types import ModuleType

import numpy as np

from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.check.comparing import (
    Different,
    call,
    hold,
    method_of,
    shapes,
    taken_from,
)
from tinygrad_peft.reference.check.finding import fill, parameter, scaling_of
from tinygrad_peft.reference.lora import LoRALayer
from tinygrad_peft.reference.quantization import dequantize_4bit, quantize_to_4bit

__all__ = ["check_quantization"]

SHAPES = [(6, 5), (3, 8), (1, 7)]


def check_quantization(solution: ModuleType, rng: np.random.Generator) -> None:
    """Check quantising and dequantising there and back, and QLoRALayer on what they give."""
    names = ("quantize_to_4bit", "dequantize_4bit")
    there = [name for name in names if taken_from(solution, name)]
    if len(there) == 1:
        (missing,) = set(names) - set(there)
        raise Different(f"{there[0]}: cannot be held against anything without {missing}")
    for shape in SHAPES:
        # Above and below zero, then above zero alone, where the zero point lies outside.
        for weight in (rng.standard_normal(shape), 1 + rng.random(shape)):
            if there:
                _check_codes(solution, weight)
            if taken_from(solution, "QLoRALayer"):
                _check_layer(solution, weight, rng)


def _quantized(solution: ModuleType, weight: Array) -> tuple[Array, float, float]:
    """Quantise with the solution, or with the reference where the solution does not."""
    quantize = taken_from(solution, "quantize_to_4bit") or quantize_to_4bit
    where = f"quantize_to_4bit(weight {weight.shape})"
    found = call(where, quantize, weight)
    if not isinstance(found, tuple | list) or len(found) != 3:
        raise Different(
            f"{where}: expected (quantized, scale, zero_point), got {type(found).__name__}"
        )
    return found[0], found[1], found[2]


def _check_codes(solution: ModuleType, weight: Array) -> None:
    where = f"quantize_to_4bit(weight {weight.shape} from {weight.min():.3g} to {weight.max():.3g})"
    codes, scale, zero_point = _quantized(solution, weight)
    codes = np.asarray(codes)
    if codes.shape != weight.shape:
        raise Different(f"{where}: expected codes of shape {weight.shape}, got {codes.shape}")
    if codes.dtype.kind not in "fiu" or (codes != np.round(codes)).any():
        raise Different(f"{where}: expected whole numbers as codes, got {codes.ravel()[0]}")
    low, high = int(codes.min()), int(codes.max())
    if not (low >= 0 and high <= 15) and not (low >= -8 and high <= 7):
        raise Different(
            f"{where}: expected codes from 0 to 15, or from -8 to 7, got {low} to {high}: 4 bits "
            "have 16 values"
        )
    told = "dequantize_4bit(quantized, scale, zero_point)"
    back = call(told, method_of("solution", solution, "dequantize_4bit"), codes, scale, zero_point)
    _check_error(f"{told} of {where}", weight, back)


def _check_error(where: str, weight: Array, back: object) -> None:
    """Allow half a step: of 15 from the least to the largest, or of 7 to either side."""
    if back is None or np.asarray(back).shape != weight.shape:
        hold(where, back, weight)
    step = (weight.max() - weight.min()) / 15
    allowed = max(step, np.abs(weight).max() / 7) / 2
    error = np.abs(np.asarray(back) - weight)
    if error.max() <= allowed * (1 + 1e-5):
        return
    i, j = np.unravel_index(error.argmax(), error.shape)
    truncated = weight.min() + step * np.floor((weight - weight.min()) / step)
    is_cut = np.abs(np.asarray(back) - truncated).max() < 1e-5 * step
    hint = "; the codes are cut off, where they are to be rounded" if is_cut else ""
    raise Different(
        f"{where}[{i}, {j}]: expected {weight[i, j]:.6g} to within half a step, {allowed:.3g}, got "
        f"{np.asarray(back)[i, j]:.6g}{hint}"
    )


def _check_layer(solution: ModuleType, weight: Array, rng: np.random.Generator) -> None:
    rank = 2
    codes, scale, zero_point = _quantized(solution, weight)
    dequantize = taken_from(solution, "dequantize_4bit") or dequantize_4bit
    frozen = np.asarray(call("dequantize_4bit(...)", dequantize, codes, scale, zero_point))
    where = f"QLoRALayer(weight_4bit {weight.shape}, scale, zero_point, {rank})"
    layer = call(where, solution.QLoRALayer, codes, scale, zero_point, rank)
    out_features, in_features = weight.shape
    oracle = LoRALayer(in_features, out_features, rank, scaling_of(layer, rank) * rank, rng=rng)
    A = parameter(where, layer, "A", "(rank, in_features)", (rank, in_features))
    B = parameter(where, layer, "B", "(out_features, rank)", (out_features, rank))
    if B.array.any():
        raise Different(f"{where}.{B.path}: expected zeros at the start, so that LoRA adds nothing")
    oracle.A = fill(where, A, rng.standard_normal(A.array.shape))
    oracle.B = fill(where, B, rng.standard_normal(B.array.shape))
    x = rng.standard_normal((2, 3, in_features))
    told = f"{where}.forward({shapes(x=x)})"
    low = (x @ oracle.A.T) @ oracle.B.T
    mistakes = [
        ("the scaling alpha / rank is left out", x @ frozen.T + low),
        ("LoRA's update is left out", x @ frozen.T),
        (
            "the 4-bit codes are used as if they were weights",
            x @ np.asarray(codes).T + oracle.scaling * low,
        ),
        ("the frozen path is left out", oracle.scaling * low),
    ]
    y = call(told, method_of(where, layer, "forward"), x)
    hold(told, y, oracle.forward(x, frozen), mistakes)
