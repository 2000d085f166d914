"""Modules, the seams between them, the layers, and the built-in transformer."""

from tinygrad_peft.nn import functional
from tinygrad_peft.nn.attention import MultiHeadAttention, PackedAttention
from tinygrad_peft.nn.block import Block, FeedForward, GatedFeedForward
from tinygrad_peft.nn.cache import LayerCache
from tinygrad_peft.nn.config import RopeScaling, TransformerConfig
from tinygrad_peft.nn.generation import Generation, GenerationSettings
from tinygrad_peft.nn.init import Init, Skeleton
from tinygrad_peft.nn.layers import (
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    no_dropout,
    seed_dropout,
)
from tinygrad_peft.nn.module import Module, Parameter, mismatches
from tinygrad_peft.nn.optim import SGD, AdamW, Optimizer, clip_grad_norm
from tinygrad_peft.nn.roles import Roles
from tinygrad_peft.nn.schedules import Schedule, constant, cosine_decay, linear_decay
from tinygrad_peft.nn.seams import (
    Affine,
    Attention,
    BlockLike,
    Context,
    Layer,
    Norm,
    Prefix,
    Prompt,
    Residual,
    TokenEmbedding,
)
from tinygrad_peft.nn.transformer import Transformer
from tinygrad_peft.nn.virtual import NoPrefix, NoPrompt, VirtualKeys, VirtualTokens
from tinygrad_peft.nn.weights import DenseWeight, times_weight, weight_of

__all__ = [
    "SGD",
    "AdamW",
    "Affine",
    "Attention",
    "Block",
    "BlockLike",
    "Context",
    "DenseWeight",
    "Dropout",
    "Embedding",
    "FeedForward",
    "GatedFeedForward",
    "Generation",
    "GenerationSettings",
    "Init",
    "Layer",
    "LayerCache",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "NoPrefix",
    "NoPrompt",
    "Norm",
    "Optimizer",
    "PackedAttention",
    "Parameter",
    "Prefix",
    "Prompt",
    "RMSNorm",
    "Residual",
    "Roles",
    "RopeScaling",
    "Schedule",
    "Skeleton",
    "TokenEmbedding",
    "Transformer",
    "TransformerConfig",
    "VirtualKeys",
    "VirtualTokens",
    "clip_grad_norm",
    "constant",
    "cosine_decay",
    "functional",
    "linear_decay",
    "mismatches",
    "no_dropout",
    "seed_dropout",
    "times_weight",
    "weight_of",
]
