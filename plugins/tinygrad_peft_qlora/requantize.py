"""Merging into a base that stays at 4 bits, and what is left of the update then.

The merged weight Ŵ + ΔW is rounded to 4-bit codes again. Where ΔW is small beside the distance of
the codes, nearly every weight falls back to where it was, and the update is gone: of one that is
2 % as large as the weight NF4 keeps next to nothing. So it is measured, layer by layer.

    achieved = requantised(Ŵ + ΔW) - Ŵ
    cosine = <achieved, ΔW> / (|achieved| |ΔW|),   relative error = |achieved - ΔW| / |ΔW|
"""

import warnings
from dataclasses import dataclass

import numpy as np

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import PeftError, PrecisionWarning
from tinygrad_peft.nn import Linear, Transformer
from tinygrad_peft.peft import PeftModel, Seam, capture_seams
from tinygrad_peft_qlora.layer import QuantizedLinear
from tinygrad_peft_qlora.quantization import QuantizedWeight, dequantize, quantize

__all__ = ["LayerReport", "RequantizeReport", "merge_requantized"]


@dataclass(frozen=True)
class LayerReport:
    """What one layer's update has become.

    path: the layer, in the checkpoint's names.
    update: |ΔW| / |Ŵ|, how large it was.
    cosine: between what was meant and what was achieved: 1 if it is all there, 0 if it is gone.
    relative_error: of what was achieved against what was meant: 0 if it is all there.
    """

    path: str
    update: float
    cosine: float
    relative_error: float

    @property
    def lost(self) -> bool:
        """Whether less than half of the update's direction is left."""
        return self.cosine < 0.5


@dataclass(frozen=True)
class RequantizeReport:
    """What became of the update in each 4-bit layer that had one; printed, it is a table."""

    layers: tuple[LayerReport, ...]

    @property
    def lost(self) -> tuple[LayerReport, ...]:
        """The layers in which less than half of the update's direction is left."""
        return tuple(layer for layer in self.layers if layer.lost)

    def __str__(self) -> str:
        width = max([len("layer"), *(len(layer.path) for layer in self.layers)])
        head = f"{'layer':{width}}  |ΔW|/|W|  cosine  relative error"
        return "\n".join(
            [
                head,
                *(
                    f"{layer.path:{width}}  {layer.update:8.4f}  {layer.cosine:6.3f}  "
                    f"{layer.relative_error:14.3f}"
                    for layer in self.layers
                ),
            ]
        )


def merge_requantized(peft: PeftModel) -> tuple[Transformer, RequantizeReport]:
    """Merge the adapter, quantise again what was at 4 bits, and say what is left of the update.

    The transformer has 4-bit layers where it had them before, with the same settings; `peft` is
    done with, as after `merge_and_unload`. Where nothing was learnt the codes stay as they are.

    Raises PeftError, and changes nothing, where a method cannot be merged, or no layer is at 4
    bits. Warns with PrecisionWarning of layers that have lost more than half of their update.
    """
    packed = _packed_layers(peft)
    peft.merge_adapter()
    try:
        again = [_requantized(seam, layer) for seam, layer in packed]
    except BaseException:
        peft.unmerge_adapter()
        raise
    model = peft.merge_and_unload()
    for (seam, _), (layer, _) in zip(packed, again, strict=True):
        seam.put(layer)
    report = RequantizeReport(tuple(found for _, found in again if found is not None))
    if report.lost:
        warnings.warn(
            f"{len(report.lost)} of {len(report.layers)} layers have lost more than half of their "
            "update in being quantised again: merge to float instead, with merge_and_unload()",
            PrecisionWarning,
            stacklevel=2,
        )
    return model, report


def _packed_layers(peft: PeftModel) -> list[tuple[Seam, QuantizedLinear]]:
    """Each place that is at 4 bits, and its layer, which other steps may have wrapped.

    Raises PeftError where there is none.
    """
    with peft.disable_adapter():
        seams = capture_seams(peft.base_model)
        places = [s for s in seams if isinstance(s.module, Linear | QuantizedLinear)]
    found = []
    for seam in places:
        below = (module for _, module in seam.module.named_modules())
        layer = next((module for module in below if isinstance(module, QuantizedLinear)), None)
        if layer is not None:
            found.append((seam, layer))
    if not found:
        raise PeftError("no layer is at 4 bits, or they are merged already: see merge_and_unload()")
    return found


def _requantized(seam: Seam, layer: QuantizedLinear) -> tuple[QuantizedLinear, LayerReport | None]:
    """The merged layer that stands there now at 4 bits, and what is left of its update if any."""
    merged = seam.module
    if not isinstance(merged, Linear):
        kind = type(merged).__name__
        raise PeftError(f"{seam.path} is a {kind} when it is merged, which has no 4-bit form")
    old, new = layer.weight, merged.weight.data
    base = dequantize(old)
    meant = new - base
    size = float(np.linalg.norm(meant))
    if not size:
        return QuantizedLinear(old, merged.bias), None
    packed = _like(old, new)
    achieved = dequantize(packed)
    achieved -= base
    found = LayerReport(
        seam.path,
        update=_ratio(size, float(np.linalg.norm(base))),
        cosine=_cosine(achieved, meant),
        relative_error=float(np.linalg.norm(achieved - meant)) / size,
    )
    return QuantizedLinear(packed, merged.bias), found


def _like(old: QuantizedWeight, weight: Array) -> QuantizedWeight:
    return quantize(
        weight,
        quant_type=old.quant_type,
        block_size=old.block_size,
        double_quant=old.double_quant,
    )


def _cosine(a: Array, b: Array) -> float:
    return _ratio(float(np.vdot(a, b)), float(np.linalg.norm(a) * np.linalg.norm(b)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
