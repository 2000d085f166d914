"""Models of the llama architecture from GGUF files, as llama.cpp writes them.

It orders the rows of q and k otherwise than Hugging Face does: pairs (2i, 2i + 1) turn together
there, pairs (i, i + D/2) here.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import CheckpointError, ConfigError, listed
from tinygrad_peft.models.naming import Naming
from tinygrad_peft.nn.config import RopeScaling, TransformerConfig
from tinygrad_peft.nn.init import Skeleton
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.nn.transformer import Transformer
