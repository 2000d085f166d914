import copy
import threading
import tracemalloc

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import ShapeError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Affine, Init, Linear, Parameter
from tinygrad_peft.nn import functional as F
from tinygrad_peft.tensor import Tensor, apply_fused, no_grad
from tinygrad_peft_qlora import (
    QuantizedLinear,
    QuantizedWeight,
    dequantize,
    quantize,
    quantized_linear,
)

KINDS = {
    "nf4": {"quant_type": "nf4"},
    "double": {"quant_type": "nf4", "double_quant": True},
    "int4": {"quant_type": "int4"},
}


def packed(
    out: int, columns: int, kind: str = "nf4", dtype: type[np.floating] = np.float64
) -> QuantizedWeight:
    weight = np.random.default_rng(0).normal(0, 0.5, (out, columns)).astype(dtype)
    return quantize(weight, block_size=32, **KINDS[kind])  # type: ignore[arg-type]


def leaf(*shape: int, dtype: type[np.floating] = np.float64, trained: bool = True) -> Tensor:
    data = np.random.default_rng(1).normal(size=shape).astype(dtype)
    return Tensor(data, requires_grad=trained)


def applied(x: Tensor, bias: Tensor | None, weight: QuantizedWeight) -> Tensor:
    return apply_fused(quantized_linear, x, bias, weight=weight)


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5), (1, 1, 5)])
def test_the_gradients_are_the_differences(
    kind: str, shape: tuple[int, ...], *, bias: bool
) -> None:
    weight, x = packed(7, 5, kind), leaf(*shape)
    inputs = [x, leaf(7)] if bias else [x]

    def function(x: Tensor, b: Tensor | None = None) -> Tensor:
        return applied(x, b, weight)

    assert check_gradients(function, inputs) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(300, 70), (128, 64), (129, 33), (1, 1), (5, 400)])
def test_it_is_the_linear_layer_of_the_dequantised_weight(
    size: tuple[int, int], kind: str, dtype: type[np.floating]
) -> None:
    out, columns = size
    weight = packed(out, columns, kind, dtype)
    plain = Tensor(dequantize(weight))
    x, again = (leaf(2, 3, columns, dtype=dtype) for _ in range(2))
    bias, same = leaf(out, dtype=dtype), leaf(out, dtype=dtype)
    y, expected = applied(x, bias, weight), F.linear(again, plain, same)
    off = 1e-12 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(y.data, expected.data, rtol=off, atol=off)
    assert y.dtype == dtype
    g = np.random.default_rng(2).normal(size=y.shape).astype(dtype)
    y.backward(g)
    expected.backward(g)
    np.testing.assert_allclose(gradient(x), gradient(again), rtol=off, atol=off)
    np.testing.assert_allclose(gradient(bias), gradient(same), rtol=off, atol=off)


def test_it_is_an_affine_layer_that_shares_its_bias() -> None:
    base = Linear(6, 4, init=Init(0))
    layer = QuantizedLinear(quantize(base.weight.data), base.bias)
    assert isinstance(layer, Affine)
    assert (layer.in_features, layer.out_features) == (6, 4)
    assert layer.bias is base.bias
    assert dict(layer.named_parameters()) == {"bias": base.bias}
    assert layer.packed_elements == 24


def test_the_plain_layer_has_the_same_output_and_a_bias_of_its_own() -> None:
    layer = QuantizedLinear(packed(4, 6), Parameter(np.arange(4.0)))
    plain = layer.dequantized()
    x = leaf(3, 6)
    np.testing.assert_allclose(plain(x).data, layer(x).data, rtol=1e-12)
    assert plain.weight.dtype == np.float64
    assert plain.bias is not layer.bias
    assert QuantizedLinear(packed(4, 6)).dequantized().bias is None


def test_a_float32_input_on_a_float64_weight_becomes_float64_as_in_a_linear_layer() -> None:
    x = leaf(3, 6, dtype=np.float32)
    y = applied(x, None, packed(4, 6))
    assert y.dtype == np.float64
    y.backward(np.ones(y.shape))
    assert gradient(x).dtype == np.float32


def test_arrays_need_not_be_contiguous() -> None:
    weight, x = packed(200, 8), leaf(3, 4, 8)
    turned = Tensor(np.asfortranarray(x.data), requires_grad=True)
    y, expected = applied(turned, None, weight), applied(x, None, weight)
    np.testing.assert_allclose(y.data, expected.data, rtol=1e-12)
    g = np.asfortranarray(np.random.default_rng(2).normal(size=y.shape))
    y.backward(g)
    expected.backward(g)
    np.testing.assert_allclose(gradient(turned), gradient(x), rtol=1e-12)


def test_inputs_are_left_unchanged() -> None:
    weight, x, bias = packed(4, 6), leaf(3, 6), leaf(4)
    for tensor in (x, bias):
        tensor.data.flags.writeable = False
    weight.codes.flags.writeable = False
    y = applied(x, bias, weight)
    g = np.ones(y.shape)
    g.flags.writeable = False
    y.backward(g)
    assert not np.shares_memory(gradient(x), g)


def test_only_needed_gradients_are_computed() -> None:
    weight = packed(4, 6)
    x, bias = np.ones((3, 6)), np.ones(4)
    for needs in ((True, True), (True, False), (False, True)):
        _, pullback = quantized_linear(needs, x, bias, weight=weight)
        assert tuple(part is not None for part in pullback(np.ones((3, 4)))) == needs


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected x \(\.\.\., \d+\), got shape \(2, 5\)"):
        applied(leaf(2, 5), None, packed(4, 6))
    with pytest.raises(ShapeError, match=r"got shape \(\)"):
        applied(leaf(), None, packed(4, 6))


def test_a_copy_is_independent() -> None:
    layer = QuantizedLinear(packed(4, 64), Parameter(np.zeros(4)))
    x = leaf(2, 64)
    before = layer(x).data
    twin = copy.deepcopy(layer)
    np.testing.assert_array_equal(twin(x).data, before)
    twin.weight.codes[:] = 0
    assert twin.bias is not None
    twin.bias.data += 1
    np.testing.assert_array_equal(layer(x).data, before)


def test_threads_do_not_share_scratch() -> None:
    layer = QuantizedLinear(packed(600, 300, dtype=np.float32))
    inputs = [leaf(4, 300, dtype=np.float32) * (i + 1.0) for i in range(4)]
    with no_grad():
        expected = [layer(x).data for x in inputs]
        found: list[list[Array]] = [[] for _ in inputs]

    def run(i: int) -> None:
        with no_grad():
            found[i] += [layer(inputs[i]).data for _ in range(20)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, same in zip(found, expected, strict=True):
        assert len(outputs) == 20
        for y in outputs:
            np.testing.assert_array_equal(y, same)


# ---------- memory ----------


@pytest.mark.parametrize("kind", KINDS)
def test_no_array_of_the_weights_size_is_ever_made(kind: str) -> None:
    layer = QuantizedLinear(packed(2048, 1024, kind, np.float32))
    whole = 4 * layer.weight.size
    x = leaf(8, 1024, dtype=np.float32)
    layer(x).sum().backward()  # warm up NumPy's one-off allocations
    tracemalloc.start()
    y = layer(x)
    held, peak_forward = tracemalloc.get_traced_memory()
    y.backward(np.ones(y.shape, np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_forward < whole / 4
    assert peak < whole / 4
    assert held < 2 * y.data.nbytes, (
        "beside the output, the codes alone are kept, which live anyway"
    )
