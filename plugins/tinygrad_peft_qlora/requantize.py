"""Merging into a base that stays at 4 bits, and the part of the update that survives.

The merged weight Ŵ + ΔW is rounded to 4-bit codes again. Where ΔW is small beside the spacing of
the codes, nearly every weight falls back to its old code and the update is lost: NF4 keeps next to
nothing of an update that is 2 % as large as the weight. So it is measured for each layer.

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
    """The part of one layer's update that survives.

    path: the layer, in the checkpoint's names.
    update: |ΔW| / |Ŵ|, its size.
    cosine: between the achieved update and ΔW: 1 if all of it survives, 0 if it is lost.
    relative_error: of the achieved update against ΔW: 0 if all of it survives.
    """

    path: str
    update: float
    cosine: float
    relative_error: float

    @property
    def lost(self) -> bool:
        """True where less than half of the update's direction survives."""
        return self.cosine < 0.5


@dataclass(frozen=True)
class RequantizeReport:
    """The surviving updates of the 4-bit layers that had one; prints as a table."""

    layers: tuple[LayerReport, ...]

    @property
    def lost(self) -> tuple[LayerReport, ...]:
        """The layers in which less than half of the update's direction survives."""
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
    """Merge the adapter, quantise the 4-bit layers again, and report what survives of the update.

    The returned transformer has the same 4-bit layers with the same settings; layers without an
    update keep their codes. `peft` is used up, as after `merge_and_unload`.

    Raises PeftError, and changes nothing, where a method cannot be merged or no layer is at 4 bits.
    Warns with PrecisionWarning about layers that lose more than half of their update.
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
            f"{len(report.lost)} of {len(report.layers)} layers lost more than half of their "
            "update to quantisation: merge to float instead, with merge_and_unload()",
            PrecisionWarning,
            stacklevel=2,
        )
    return model, report


def _packed_layers(peft: PeftModel) -> list[tuple[Seam, QuantizedLinear]]:
    """Find the 4-bit layers, also below other steps' wrappers.

    Raises PeftError if there are none.
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
        raise PeftError(
            "expected 4-bit layers that are not merged yet, got none: see merge_and_unload()"
        )
    return found


def _requantized(seam: Seam, layer: QuantizedLinear) -> tuple[QuantizedLinear, LayerReport | None]:
    """Quantise a merged layer again, and report on its update if it has one."""
    merged = seam.module
    if not isinstance(merged, Linear):
        kind = type(merged).__name__
        raise PeftError(f"{seam.path}: expected a merged Linear to quantise, got {kind}")
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
