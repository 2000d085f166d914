"""check: a right solution passes, and each spoilt line is found and named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinygrad_peft.reference.check import main

RIGHT = (Path(__file__).parent / "right_solution.py").read_text("utf-8")
NUMBERS = ("9.5", "9.6", "9.7", "9.8", "9.9", "9.10", "9.11", "9.12")

Capture = pytest.CaptureFixture[str]

# exercise, code of the right solution, code of a student, and the report
MISTAKES = [
    (
        "9.6",
        "grad_x = scaling * (grad_output @ B @ A)",
        "grad_x = grad_output @ B @ A",
        (
            "grad_x of lora_backward(grad_output (2, 3, 4), x (2, 3, 4), A (2, 4), B (4, 2), "
            "scaling=3)"
            "[0, 0, 0]: expected # got # (24 of 24 values differ); "
            "the scaling is forgotten in grad_x"
        ),
    ),
    (
        "9.6",
        "return grad_A, grad_B, grad_x",
        "return grad_B, grad_A, grad_x",
        (
            "grad_A of lora_backward(#): expected shape (2, 4), got (4, 2); these are the "
            "values of "
            "grad_B: the order is (grad_A, grad_B, grad_x)"
        ),
    ),
    (
        "9.6",
        "return grad_A, grad_B, grad_x",
        "return grad_A / len(flat), grad_B, grad_x",
        "grad_A of #; grad_A is averaged over the rows of x, where they are to be added",
    ),
    (
        "9.6",
        "return grad_A, grad_B, grad_x",
        "return grad_A, grad_B.T, grad_x",
        "grad_B of #: expected shape (4, 2), got (2, 4); grad_B is transposed",
    ),
    (
        "9.6",
        "return grad_A, grad_B, grad_x",
        "return grad_A, grad_B",
        "lora_backward(#): expected (grad_A, grad_B, grad_x), got 2 values",
    ),
    (
        "9.6",
        "grad_B = g.T @ (flat @ A.T)",
        "grad_B = np.einsum('bto,btr->bor', scaling * np.atleast_3d(grad_output), x @ A.T)",
        (
            "grad_B of #: expected shape (4, 2), got (2, 4, 2); the gradients of the texts are "
            "kept "
            "apart, where they are to be added"
        ),
    ),
    (
        "9.5",
        "low = x @ self.A.T @ self.B.T",
        "low = x @ self.B @ self.A",
        (
            "LoRALayer(4, 4, 2, 6.0).forward(x (2, 3, 4), W (4, 4))[0, 0, 0]: expected # got # "
            "(24 of 24 values differ); A and B are swapped: B comes first"
        ),
    ),
    (
        "9.5",
        (
            "self.A = 0.01 * rng.standard_normal((rank, in_features))\n"
            "        self.B = np.zeros((out_features, rank))"
        ),
        (
            "self.B = 0.01 * rng.standard_normal((rank, in_features))\n"
            "        self.A = np.zeros((out_features, rank))"
        ),
        (
            "LoRALayer(4, 4, 2, 6.0): expected A (2, 4) and B (4, 2), got A (4, 2) and B (2, 4); "
            "A and B are swapped"
        ),
    ),
    (
        "9.5",
        (
            "self.A = 0.01 * rng.standard_normal((rank, in_features))\n"
            "        self.B = np.zeros((out_features, rank))"
        ),
        (
            "self.A = np.zeros((rank, in_features))\n"
            "        self.B = rng.standard_normal((out_features, rank))"
        ),
        (
            "LoRALayer(4, 4, 2, 6.0).B: expected zeros at the start, so that training begins at "
            "W, got "
            "values up to #; A starts at zero instead: A and B are swapped"
        ),
    ),
    (
        "9.5",
        "0.01 * rng.standard_normal((rank, in_features))",
        "np.zeros((rank, in_features))",
        (
            "LoRALayer(4, 4, 2, 6.0).A: expected random numbers at the start, got zeros; with B "
            "zero "
            "too, both gradients are zero and nothing is trained"
        ),
    ),
    (
        "9.5",
        "x @ W.T + self.scaling * low",
        "x @ W.T + low",
        "LoRALayer(#).forward(#)[#]: #; the scaling alpha / rank is left out",
    ),
    (
        "9.5",
        "self.scaling = alpha / rank",
        "self.scaling = alpha",
        "LoRALayer(#).forward(#)[#]: #; the scaling is alpha, not alpha / rank",
    ),
    (
        "9.5",
        "x @ W.T + self.scaling * low",
        "x @ W + self.scaling * low",
        "LoRALayer(#).forward(#)[#]: #; W is not transposed",
    ),
    (
        "9.5",
        "W + self.scaling * self.B @ self.A",
        "W + self.B @ self.A",
        "LoRALayer(#).merge(W)[#]: #; the scaling alpha / rank is left out",
    ),
    (
        "9.5",
        "return g @ self.W + grad_x",
        "return grad_x",
        (
            "LoRALayer(#).backward(grad_output (2, 3, 4))[#]: #; "
            "the frozen path's grad_output @ W is left out"
        ),
    ),
    (
        "9.5",
        "return g @ self.W + grad_x",
        "return g @ self.W + grad_x / self.scaling",
        "LoRALayer(#).backward(#)[#]: #; the scaling is forgotten in grad_x",
    ),
    (
        "9.5",
        "return g @ self.W + grad_x",
        "self.grad_B = self.grad_B / self.scaling\n        return g @ self.W + grad_x",
        "LoRALayer(#).grad_B[0, 0]: #; the scaling is forgotten in grad_B",
    ),
    (
        "9.7",
        "return x + up",
        "return up",
        (
            "Adapter(6, 3).forward(x (2, 4, 6))[0, 0, 0]: expected # got # (48 of 48 values "
            "differ); "
            "the residual is missing: x is to be added"
        ),
    ),
    (
        "9.7",
        "np.maximum(x @ self.W_down, 0)\n",
        "x @ self.W_down\n",
        "Adapter(6, 3).forward(#)[#]: #; the activation is missing between down and up",
    ),
    (
        "9.7",
        "np.maximum(x @ self.W_down, 0)\n",
        "np.tanh(x @ self.W_down)\n",
        "Adapter(6, 3).forward(#)[#]: #; the activation is tanh, where the exercise has relu",
    ),
    (
        "9.7",
        "self.W_up = np.zeros((bottleneck, d_model))",
        "self.W_up = 100 * np.ones((bottleneck, d_model))",
        (
            "Adapter(6, 3): expected a start near the identity, got one that moves its input by #; "
            "the weights start too large"
        ),
    ),
    (
        "9.7",
        "return g + inner @ self.W_down.T",
        "return inner @ self.W_down.T",
        "Adapter(6, 3).backward(#)[#]: #; the residual is missing: grad_output is to be added",
    ),
    (
        "9.7",
        "inner = (g @ self.W_up.T) * (self.hidden > 0)",
        "inner = g @ self.W_up.T",
        "Adapter(6, 3).backward(#)[#]: #; the activation's slope is missing",
    ),
    (
        "9.8",
        "np.concatenate([prompts, input_embeddings], axis=1)",
        "np.concatenate([input_embeddings, prompts], axis=1)",
        (
            "PromptTuning(6, 4).forward(input_embeddings (2, 3, 6))[0, 0, 0]: expected # got # "
            "(84 of 84 values differ); the prompt comes after the text, where it belongs before it"
        ),
    ),
    (
        "9.8",
        "g[:, :n].sum(axis=0)",
        "g[:, :n]",
        (
            "PromptTuning(6, 4).prompt_grad: expected shape (4, 6), got (2, 4, 6); the texts of "
            "the "
            "batch are kept apart, where they are to be added"
        ),
    ),
    (
        "9.9",
        "scores.max(axis=-1, keepdims=True))\n        p = p / p.sum(axis=-1, keepdims=True)",
        "scores.max(axis=-2, keepdims=True))\n        p = p / p.sum(axis=-2, keepdims=True)",
        (
            "LoRAMultiHeadAttention(8, 2, 3, ['q', 'v']).forward(x (2, 4, 8))[#]: #; "
            "the softmax runs over the queries, not over the keys"
        ),
    ),
    (
        "9.9",
        " / np.sqrt(q.shape[-1])",
        "",
        "LoRAMultiHeadAttention(#).forward(#)[#]: #; the scores are not divided by √d_head",
    ),
    (
        "9.9",
        "np.sqrt(q.shape[-1])",
        "np.sqrt(d)",
        (
            "LoRAMultiHeadAttention(#).forward(#)[#]: #; "
            "the scores are divided by √d_model, not √d_head"
        ),
    ),
    (
        "9.9",
        "scores = scores + mask",
        "pass",
        (
            "LoRAMultiHeadAttention(#).forward(x, mask (4, 4)), causal, 0 and -1e9[#]: #; "
            "the mask is not used"
        ),
    ),
    (
        "9.9",
        'self.project("o", joined)',
        "joined",
        "LoRAMultiHeadAttention(#).forward(#)[#]: #; the output projection is left out",
    ),
    (
        "9.9",
        "        self.lora = {}\n",
        "",
        (
            "LoRAMultiHeadAttention(#).forward(x) after merge_lora()[#]: #; "
            "the update counts twice: forward still adds it"
        ),
    ),
    (
        "9.9",
        "self.W[name] = lora.merge(self.W[name])",
        "pass",
        "LoRAMultiHeadAttention(#).W.q after merge_lora()[0, 0]: #; the update is not merged",
    ),
    (
        "9.9",
        "sum(lora.A.size + lora.B.size for lora",
        "sum(lora.A.size for lora",
        (
            "LoRAMultiHeadAttention(#).count_trainable_params(): expected 96, got 48; "
            "only A or only B is counted"
        ),
    ),
    (
        "9.10",
        '"lora": 2 * layers * 2 * d * size',
        '"lora": layers * 2 * d * size',
        (
            "analyze_peft_efficiency({'d_model': 64, 'n_layers': 3, 'n_heads': 4}, 'lora', "
            "{'rank': 8})"
            "['trainable_params']: expected 6144, got 3072; "
            "only one of q and v is counted, or only one of A and B"
        ),
    ),
    (
        "9.10",
        '"efficiency_ratio": trainable / total',
        '"efficiency_ratio": 100 * trainable / total',
        (
            "analyze_peft_efficiency(#)['efficiency_ratio']: expected #, got #; "
            "it is in percent, where a share is asked for"
        ),
    ),
    (
        "9.10",
        "12 * (total - trainable)",
        "12 * (trainable - total)",
        (
            "analyze_peft_efficiency(#)['memory_estimate']: expected what is saved against "
            "training "
            "all of it, between 0 and the # bytes that that takes, got #"
        ),
    ),
    (
        "9.10",
        "total = 12 *",
        "total = 7 *",
        (
            "analyze_peft_efficiency(#)['total_params']: expected 4 L d² = 49152 for the "
            "attentions "
            "alone, or 12 L d² = 147456 with feed-forward layers, got 86016"
        ),
    ),
    (
        "9.11",
        "self.base_model[weight] + s * B @ A",
        "self.base_model[weight] + B @ A",
        (
            "base_model['q'] after LoRAManager.merge_adapter('brief'), W + s B A[0, 0]: #; "
            "the scaling is left out"
        ),
    ),
    (
        "9.11",
        (
            "np.concatenate([a[w][0] for _, a in parts]),\n"
            "                np.concatenate([c * a[w][2] * a[w][1] for c, a in parts], axis=1),\n"
            "                1.0,"
        ),
        (
            "sum(c * a[w][0] for c, a in parts),\n"
            "                sum(c * a[w][1] for c, a in parts),\n"
            "                0.5,"
        ),
        (
            "LoRAManager.combine_adapters(['polite', 'brief'], [0.7, 0.3]), its update of "
            "'q'[0, 0]: "
            "#; the A's and the B's are averaged: that multiplies Bᵢ and Aⱼ of different adapters"
        ),
    ),
    (
        "9.11",
        "self.active = name",
        "pass",
        (
            "LoRAManager.switch_adapter('polite'): expected an attribute with that name, or "
            "base_model "
            "with that adapter's update, found neither"
        ),
    ),
    (
        "9.11",
        'self.adapters["combined"] = {',
        "_ = {",
        (
            "LoRAManager.combine_adapters(#): expected the weighted sum of the updates, as a new "
            "adapter or in base_model, found nothing new"
        ),
    ),
    (
        "9.12",
        "np.round((weight - zero_point) / scale)",
        "np.floor((weight - zero_point) / scale)",
        (
            "dequantize_4bit(#) of quantize_to_4bit(#)[#]: expected # to within half a step, #, "
            "got #; "
            "the codes are cut off, where they are to be rounded"
        ),
    ),
    (
        "9.12",
        "(weight.max() - weight.min()) / 15",
        "(weight.max() - weight.min()) / 16",
        (
            "quantize_to_4bit(weight (6, 5) #): expected codes from 0 to 15, or from -8 to 7, "
            "got 0 to "
            "16: 4 bits have 16 values"
        ),
    ),
    (
        "9.12",
        "W = dequantize_4bit(self.weight_4bit, self.scale, self.zero_point)",
        "W = self.weight_4bit.astype(float)",
        "QLoRALayer(#).forward(#)[#]: #; the 4-bit codes are used as if they were weights",
    ),
]


def matches(told: str, wanted: str) -> bool:
    """Compare, with # for any text."""
    return re.fullmatch(re.escape(wanted).replace(r"\#", ".*?"), told) is not None


def verdict(folder: Path, text: str, number: str, capsys: Capture) -> tuple[int, str]:
    """Return the exit status, and the report on one exercise."""
    (folder / "mine.py").write_text(text, encoding="utf-8")
    status = main([str(folder / "mine.py"), number, "--seconds", "60"])
    line, summary = capsys.readouterr().out.splitlines()
    assert summary == ("1 of 1 right" if status == 0 else "0 of 1 right")
    return status, line.partition(": ")[2]


def test_a_right_solution_is_right_in_every_exercise(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.py").write_text(RIGHT, encoding="utf-8")
    assert main([str(tmp_path / "mine.py")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(NUMBERS)
    assert all(line.endswith(": right") for line in lines[:-1])
    assert lines[-1] == "8 of 8 right"


def test_the_reference_is_a_right_solution(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.py").write_text("from tinygrad_peft.reference import *", encoding="utf-8")
    assert main([str(tmp_path / "mine.py")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("number", "right", "wrong", "told"), MISTAKES)
def test_a_mistake_is_found_and_named(
    tmp_path: Path, capsys: Capture, number: str, right: str, wrong: str, told: str
) -> None:
    assert RIGHT.count(right) == 1
    status, line = verdict(tmp_path, RIGHT.replace(right, wrong), number, capsys)
    assert status == 1
    assert matches(line, told), line


def test_a_difference_of_no_known_kind_has_no_hint(tmp_path: Path, capsys: Capture) -> None:
    text = RIGHT.replace("return x + up", "return x + 1.7 * up")
    _, line = verdict(tmp_path, text, "9.7", capsys)
    assert matches(line, "Adapter(6, 3).forward(#)[0, 0, #]: expected #, got # values differ)")


LIKE = """
import numpy as np
rng = np.random.default_rng()
"""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            "9.5",
            """
            class LoRALayer:
                def __init__(self, i, o, rank=8, alpha=16):
                    self.s = alpha / rank
                    self.weights = {"down": rng.normal(size=(rank, i)), "up": np.zeros((o, rank))}
                def forward(self, x, W):
                    return x @ (W + self.s * self.weights["up"] @ self.weights["down"]).T
                def merge_weights(self, W):
                    return W + self.s * self.weights["up"] @ self.weights["down"]
            """,
        ),
        (
            "9.5",
            """
            class LoRALayer:
                def __init__(self, i, o, rank=8, alpha=16):
                    self.s, self.A, self.B = alpha / rank, np.ones((rank, i)), np.zeros((o, rank))
                def forward(self, x, W):
                    return x @ self.merge(W).T
                def backward(self, g, x, W):
                    return g @ self.merge(W)
                def merge(self, W):
                    return W + self.s * self.B @ self.A
            """,
        ),
        (
            "9.7",
            """
            class Adapter:
                def __init__(self, d, m=64):
                    self.down = {"weight": 0.01 * rng.normal(size=(m, d)), "bias": np.zeros(m)}
                    self.up = {"weight": 0.01 * rng.normal(size=(d, m)), "bias": np.zeros(d)}
                def forward(self, x):
                    h = np.maximum(0, x @ self.down["weight"].T + self.down["bias"])
                    return x + h @ self.up["weight"].T + self.up["bias"]
            """,
        ),
        (
            "9.11",
            """
            class LoRAManager:
                def __init__(self, base_model):
                    self.base_model, self.adapters, self.current = base_model, {}, None
                def add_adapter(self, name, lora_weights):
                    deltas = {k: w["B"] @ w["A"] for k, w in lora_weights.items()}
                    self.adapters[name] = deltas
                def move(self, name, sign):
                    for k, delta in self.adapters[name].items():
                        self.base_model[k] += sign * delta
                def switch_adapter(self, name):
                    if self.current is not None:
                        self.move(self.adapters_by(self.current), -1)
                    self.move(name, 1)
                    self.current = list(self.adapters).index(name)
                def adapters_by(self, index):
                    return list(self.adapters)[index]
                def merge_adapter(self, name):
                    self.move(name, 1)
                def combine_adapters(self, names, weights):
                    for name, weight in zip(names, weights):
                        self.move(name, weight)
            """,
        ),
        (
            "9.12",
            """
            def quantize_to_4bit(weight):
                scale = np.abs(weight).max() / 7
                return np.round(weight / scale).astype(np.int8), scale, 0.0
            def dequantize_4bit(quantized, scale, zero_point):
                return scale * (quantized - zero_point)
            """,
        ),
        (
            "9.9",
            """
            class LoRAMultiHeadAttention:
                def __init__(self, d_model, n_heads, rank=8, target_modules=["q", "v"]):
                    self.h, self.targets, self.scale = n_heads, target_modules, 16 / rank
                    for n in "qkvo":
                        setattr(self, f"W{n}", rng.normal(size=(d_model, d_model)))
                    for n in target_modules:
                        setattr(self, f"A{n}", rng.normal(size=(rank, d_model)))
                        setattr(self, f"B{n}", np.zeros((d_model, rank)))
                def weight(self, n):
                    W = getattr(self, f"W{n}")
                    if n not in self.targets:
                        return W
                    return W + self.scale * (getattr(self, f"B{n}") @ getattr(self, f"A{n}")).T
                def forward(self, x, mask=None):
                    B, T, d = x.shape
                    q, k, v = (
                        (x @ self.weight(n)).reshape(B, T, self.h, d // self.h) for n in "qkv"
                    )
                    s = np.einsum("bqhd,bkhd->bhqk", q, k) / (d // self.h) ** 0.5
                    if mask is not None:
                        s = np.where(mask == 0, -1e9, s)
                    e = np.exp(s - s.max(-1)[..., None])
                    p = e / e.sum(-1)[..., None]
                    y = np.einsum("bhqk,bkhd->bqhd", p, v).reshape(B, T, d)
                    return y @ self.weight("o")
                def merge_lora(self):
                    for n in self.targets:
                        setattr(self, f"W{n}", self.weight(n))
                    self.targets = []
                def count_trainable_params(self):
                    arrays = [getattr(self, f"{k}{n}") for k in "AB" for n in self.targets]
                    return sum(a.size for a in arrays)
            """,
        ),
    ],
    ids=["lora", "lora that keeps nothing", "adapter", "manager", "quantization", "attention"],
)
def test_other_names_forms_and_orders_of_the_same_are_right(
    tmp_path: Path, capsys: Capture, number: str, text: str
) -> None:
    solution = LIKE + "\n".join(line[12:] for line in text.splitlines())
    assert verdict(tmp_path, solution, number, capsys) == (0, "right")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "class Adapter:\n    pass",
            "Adapter(6, 3): raises TypeError: Adapter() takes no arguments",
        ),
        (
            "class Adapter:\n    def __init__(self, d, m): pass",
            "Adapter(6, 3): expected a method forward, got none",
        ),
        (
            "class Adapter:\n    def __init__(self, d, m): pass\n    def forward(self, x): pass",
            (
                "Adapter(6, 3): expected an array W_down (d_model, bottleneck) = (6, 3), "
                "found no arrays"
            ),
        ),
        (
            "class Adapter:\n    def __init__(self, d, m):\n        self.x = 1 / 0",
            "Adapter(6, 3): raises ZeroDivisionError: division by zero (line 3)",
        ),
        ("class Adapter:\n    def __init__(self, d, m): exit()", "calls exit()"),
        (
            "class Adapter:\n    def __init__(self, d, m): raise BaseException('out')",
            "raises BaseException: out",
        ),
        (
            "class Adapter:\n    def __init__(self, d, m): raise KeyboardInterrupt",
            "raises KeyboardInterrupt",
        ),
        (
            "class Adapter:\n    def __init__(self, d, m):\n        while True: pass",
            "does not end within 0.2 seconds",
        ),
    ],
)
def test_a_broken_solution_is_reported(
    tmp_path: Path, capsys: Capture, text: str, told: str
) -> None:
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert main([str(tmp_path / "mine.py"), "--seconds", "0.2"]) == 1
    assert capsys.readouterr().out == f"9.7   Adapter: {told}\n0 of 1 right\n"


def test_endless_printing_does_not_change_the_report(tmp_path: Path) -> None:
    text = """
class Adapter:
    def __init__(self, d, m):
        while True:
            print("still here")
"""
    run = command(tmp_path, text, "--seconds", "0.2")
    assert (run.returncode, run.stdout) == (
        1,
        "9.7   Adapter: does not end within 0.2 seconds\n0 of 1 right\n",
    )
    assert run.stderr.startswith("still here\n")


def command(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "tinygrad_peft.reference", "check", "mine.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_the_command_checks_the_given_exercises(tmp_path: Path) -> None:
    run = command(tmp_path, RIGHT, "9.6", "9.7")
    assert (run.returncode, run.stdout, run.stderr) == (
        0,
        "9.6   lora_backward: right\n9.7   Adapter: right\n2 of 2 right\n",
        "",
    )


def test_a_missing_exercise_is_reported(tmp_path: Path, capsys: Capture) -> None:
    assert verdict(tmp_path, "def lora_backward(): ...", "9.7", capsys) == (1, "not in the file")


def test_half_of_the_quantisation_is_not_enough(tmp_path: Path, capsys: Capture) -> None:
    text = RIGHT.replace("def quantize_to_4bit", "def quantise")
    told = "dequantize_4bit: cannot be held against anything without quantize_to_4bit"
    assert verdict(tmp_path, text, "9.12", capsys) == (1, told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "lora = 1",
            (
                "mine.py: expected at least one of LoRALayer, lora_backward, Adapter, "
                "PromptTuning, "
                "LoRAMultiHeadAttention, analyze_peft_efficiency, LoRAManager, quantize_to_4bit, "
                "dequantize_4bit, QLoRALayer, got none\n"
            ),
        ),
        ("1 / 0", "mine.py: executing it: raises ZeroDivisionError: division by zero (line 1)\n"),
        ("class:", "mine.py: executing it: raises SyntaxError: invalid syntax (mine.py, line 1)\n"),
        ("exit()", "mine.py: calls exit()\n"),
    ],
)
def test_a_file_with_nothing_to_check_ends_with_status_2(
    tmp_path: Path, text: str, told: str
) -> None:
    run = command(tmp_path, text)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", told)


def test_a_missing_file_is_reported(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path / "none.py")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none.py'}: expected a file, got none\n"


def test_a_file_of_another_kind_is_reported(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").touch()
    assert main([str(tmp_path / "mine.txt")]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'mine.txt'}: expected a Python file, named *.py\n"
    )


def test_an_unknown_exercise_is_a_wrong_usage(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["mine.py", "9.4"])
    assert "unknown exercise 9.4, expected 9.5, 9.6" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "-1", "0", "inf", "1e20", "ten"])
def test_a_time_that_cannot_be_waited_for_is_a_wrong_usage(capsys: Capture, seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["mine.py", f"--seconds={seconds}"])
    assert f"--seconds: expected a number above 0, got {seconds}" in capsys.readouterr().err


def test_the_help_says_that_the_file_is_executed(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Your file is executed" in " ".join(capsys.readouterr().out.split())


def test_the_stubs_of_the_exercises_page_are_all_there_and_none_is_right(
    tmp_path: Path, capsys: Capture
) -> None:
    page = Path(__file__).parents[2] / "docs" / "exercises.md"
    if not page.is_file():
        pytest.skip("these tests were copied away from the documents")
    stubs = re.findall(r"```python\n((?:class|def) .*?)```", page.read_text("utf-8"), re.DOTALL)
    text = "import numpy as np\n" + "\n".join(stubs)
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert main([str(tmp_path / "mine.py")]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NUMBERS)
    assert summary == "0 of 8 right"
    assert not any("raises" in line or "cannot be compared" in line for line in lines), lines
