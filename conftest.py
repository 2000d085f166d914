"""Lets the examples of README.md and docs/ run, in a folder with small checkpoints."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinygrad_peft.models import save_model
from tinygrad_peft.nn import Transformer, TransformerConfig

SMALL = TransformerConfig(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)
LLAMA = {
    "model_type": "llama",
    "norm": "rms_norm",
    "positions": "rotary",
    "activation": "silu",
    "gated_mlp": True,
    "attention_bias": False,
    "mlp_bias": False,
}
BERT = {
    "model_type": "bert",
    "norm_position": "post",
    "activation": "gelu",
    "causal": False,
    "type_vocab_size": 2,
    "head": "none",
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-llama` and `my-bert`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, kind in (("my-llama", LLAMA), ("my-bert", BERT)):
        settings = {**vars(SMALL), **kind}
        save_model(Transformer(TransformerConfig(**settings)), folder / name)
    return folder


@pytest.fixture(autouse=True)
def _examples_stand_beside_checkpoints(request: pytest.FixtureRequest) -> Iterator[None]:
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    before = Path.cwd()
    os.chdir(request.getfixturevalue("checkpoints"))
    yield
    os.chdir(before)
