"""Every differentiable op on bare arrays: its value, and the pullback of its gradient."""

from tinygrad_peft.ops._result import FusedResult, JointPullback, Needs, Pullback, Result
from tinygrad_peft.ops.activation import gelu, gelu_tanh, relu, silu, swiglu
from tinygrad_peft.ops.arithmetic import (
    add,
    div,
    erf,
    exp,
    log,
    matmul,
    maximum,
    mul,
    neg,
    power,
    sqrt,
    sub,
    tanh,
)
from tinygrad_peft.ops.attention import attention, attention_packed, rotary
from tinygrad_peft.ops.dense import check_ids, dropout, embedding, linear
from tinygrad_peft.ops.loss import cross_entropy, linear_cross_entropy
from tinygrad_peft.ops.normalisation import layer_norm, log_softmax, rms_norm, softmax
from tinygrad_peft.ops.shape import (
    Index,
    broadcast_to,
    concatenate,
    getitem,
    max,  # noqa: A004 - NumPy's name
    mean,
    reshape,
    sum,  # noqa: A004 - NumPy's name
    transpose,
    where,
)

__all__ = [
    "FusedResult",
    "Index",
    "JointPullback",
    "Needs",
    "Pullback",
    "Result",
    "add",
    "attention",
    "attention_packed",
    "broadcast_to",
    "check_ids",
    "concatenate",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "erf",
    "exp",
    "gelu",
    "gelu_tanh",
    "getitem",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "maximum",
    "mean",
    "mul",
    "neg",
    "power",
    "relu",
    "reshape",
    "rms_norm",
    "rotary",
    "silu",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "swiglu",
    "tanh",
    "transpose",
    "where",
]
