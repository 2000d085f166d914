"""The course's exercises 9.5 to 9.12 as a student may solve them; the tests spoil single lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
rng = np.random.default_rng()


class LoRALayer:
    def __init__(
        self, in_features: int, out_features: int, rank: int = 8, alpha: float = 16
    ) -> None:
        self.scaling = alpha / rank
        self.A = 0.01 * rng.standard_normal((rank, in_features))
        self.B = np.zeros((out_features, rank))

    def forward(self, x: Array, W: Array) -> Array:
        self.x, self.W = x, W
        low = x @ self.A.T @ self.B.T
        return x @ W.T + self.scaling * low

    def backward(self, g: Array) -> Array:
        self.grad_A, self.grad_B, grad_x = lora_backward(g, self.x, self.A, self.B, self.scaling)
        return g @ self.W + grad_x

    def merge(self, W: Array) -> Array:
        return W + self.scaling * self.B @ self.A


def lora_backward(
    grad_output: Array, x: Array, A: Array, B: Array, scaling: float
) -> tuple[Array, Array, Array]:
    g = scaling * grad_output.reshape(-1, grad_output.shape[-1])
    flat = x.reshape(-1, x.shape[-1])
    grad_A = (g @ B).T @ flat
    grad_B = g.T @ (flat @ A.T)
    grad_x = scaling * (grad_output @ B @ A)
    return grad_A, grad_B, grad_x


class Adapter:
    def __init__(self, d_model: int, bottleneck: int = 64) -> None:
        self.W_down = 0.01 * rng.standard_normal((d_model, bottleneck))
        self.W_up = np.zeros((bottleneck, d_model))

    def forward(self, x: Array) -> Array:
        self.x, self.hidden = x, np.maximum(x @ self.W_down, 0)
        up = self.hidden @ self.W_up
        return x + up

    def backward(self, g: Array) -> Array:
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        self.W_up_grad = rows.T @ g.reshape(-1, g.shape[-1])
        inner = (g @ self.W_up.T) * (self.hidden > 0)
        self.W_down_grad = self.x.reshape(-1, self.x.shape[-1]).T @ inner.reshape(
            -1, inner.shape[-1]
        )
        return g + inner @ self.W_down.T


class PromptTuning:
    def __init__(self, d_model: int, prompt_length: int = 20) -> None:
        self.prompt = 0.01 * rng.standard_normal((prompt_length, d_model))

    def forward(self, input_embeddings: Array) -> Array:
        prompts = np.stack([self.prompt] * len(input_embeddings))
        return np.concatenate([prompts, input_embeddings], axis=1)

    def backward(self, g: Array) -> Array:
        n = len(self.prompt)
        self.prompt_grad = g[:, :n].sum(axis=0)
        return g[:, n:]


class LoRAMultiHeadAttention:
    def __init__(
        self, d_model: int, n_heads: int, rank: int = 8, target_modules: Sequence[str] = ("q", "v")
    ) -> None:
        self.n_heads = n_heads
        self.W = {n: rng.standard_normal((d_model, d_model)) / d_model**0.5 for n in "qkvo"}
        self.lora = {n: LoRALayer(d_model, d_model, rank) for n in target_modules}

    def project(self, name: str, x: Array) -> Array:
        W = self.W[name]
        return self.lora[name].forward(x, W) if name in self.lora else x @ W.T

    def forward(self, x: Array, mask: Array | None = None) -> Array:
        batch, seq, d = x.shape
        q, k, v = (
            self.project(n, x).reshape(batch, seq, self.n_heads, -1).transpose(0, 2, 1, 3)
            for n in "qkv"
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + mask
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p = p / p.sum(axis=-1, keepdims=True)
        joined = (p @ v).transpose(0, 2, 1, 3).reshape(batch, seq, d)
        return self.project("o", joined)

    def merge_lora(self) -> None:
        for name, lora in self.lora.items():
            self.W[name] = lora.merge(self.W[name])
        self.lora = {}

    def count_trainable_params(self) -> int:
        return sum(lora.A.size + lora.B.size for lora in self.lora.values())


def analyze_peft_efficiency(
    model_config: Mapping[str, int], method: str, method_config: Mapping[str, int]
) -> dict[str, Any]:
    d, layers = model_config["d_model"], model_config["n_layers"]
    total = 12 * layers * d * d
    (size,) = method_config.values()
    trainable = {
        "lora": 2 * layers * 2 * d * size,
        "adapter": 2 * layers * 2 * d * size,
        "prefix": 2 * layers * d * size,
        "prompt": d * size,
    }[method]
    return {
        "trainable_params": trainable,
        "total_params": total,
        "efficiency_ratio": trainable / total,
        "memory_estimate": 12 * (total - trainable),
    }


class LoRAManager:
    def __init__(self, base_model: dict[str, Array]) -> None:
        self.base_model = base_model
        self.adapters: dict[str, Any] = {}

    def add_adapter(self, name: str, lora_weights: Mapping[str, Any]) -> None:
        self.adapters[name] = {w: (A, B, s) for w, (A, B, s) in lora_weights.items()}

    def switch_adapter(self, name: str) -> None:
        self.active = name

    def merge_adapter(self, name: str) -> None:
        for weight, (A, B, s) in self.adapters.pop(name).items():
            self.base_model[weight] = self.base_model[weight] + s * B @ A

    def combine_adapters(self, names: Sequence[str], weights: Sequence[float]) -> None:
        parts = [(c, self.adapters[n]) for n, c in zip(names, weights, strict=True)]
        self.adapters["combined"] = {
            w: (
                np.concatenate([a[w][0] for _, a in parts]),
                np.concatenate([c * a[w][2] * a[w][1] for c, a in parts], axis=1),
                1.0,
            )
            for w in parts[0][1]
        }


def quantize_to_4bit(weight: Array) -> tuple[Array, float, float]:
    scale = (weight.max() - weight.min()) / 15
    zero_point = weight.min()
    codes = np.round((weight - zero_point) / scale)
    return codes.astype(np.uint8), scale, zero_point


def dequantize_4bit(quantized: Array, scale: float, zero_point: float) -> Array:
    return quantized * scale + zero_point


class QLoRALayer:
    def __init__(self, weight_4bit: Array, scale: float, zero_point: float, rank: int = 8) -> None:
        self.weight_4bit, self.scale, self.zero_point = weight_4bit, scale, zero_point
        self.lora = LoRALayer(weight_4bit.shape[1], weight_4bit.shape[0], rank)

    def forward(self, x: Array) -> Array:
        W = dequantize_4bit(self.weight_4bit, self.scale, self.zero_point)
        return self.lora.forward(x, W)
