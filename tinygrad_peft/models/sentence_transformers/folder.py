"""Read and write a model with the pooling and the head of a sentence-transformers folder."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import saving
from tinygrad_peft.models.hf import SaveDtype, read_config, read_model, write_model
from tinygrad_peft.models.sentence_transformers.head import HEAD_FILES, checked_head, write_head
from tinygrad_peft.models.sentence_transformers.modules import SentenceModules
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.init import Skeleton
from tinygrad_peft.nn.layers import Linear
from tinygrad_peft.nn.transformer import Transformer

__all__ = ["read_sentence_config", "read_sentence_model", "write_sentence_model"]

_HEAD = "classifier."


def read_sentence_config(
    modules: SentenceModules, *, check_weights: bool = True
) -> TransformerConfig:
    """Read the config of a folder's model: an encoder with its pooling, or a classifier.

    Raises what `read_config` raises, and CheckpointError for an encoder with a head of its own.
    """
    return _with_pooling(modules, read_config(modules.transformer, check_weights=check_weights))


def read_sentence_model(modules: SentenceModules, dtype: np.dtype[np.floating]) -> Transformer:
    """Read the model of a folder.

    Raises what `read_model` raises, and CheckpointError for an encoder with a head of its own or a
    Dense that does not fit.
    """
    model = read_model(modules.transformer, dtype)
    model.config = config = _with_pooling(modules, model.config)
    if modules.dense is not None:
        model.classifier = _read_classifier(modules.dense, config, dtype)
    return model


def write_sentence_model(model: Transformer, path: Path, dtype: SaveDtype) -> None:
    """Write a model whose pooling transformers' classes do not have.

    Raises what `write_model` raises.
    """
    encoder = copy.copy(model)
    encoder.classifier = None
    encoder.config = replace(model.config, head="none")
    weights = model.state_dict().items()
    head = {n.removeprefix(_HEAD): array for n, array in weights if n.startswith(_HEAD)}
    with saving(path) as save:
        write_model(encoder, save.staged, dtype)
        save.remove(HEAD_FILES)
        write_head(save, model.config, head or None, dtype)


def _read_classifier(
    dense: Path, config: TransformerConfig, dtype: np.dtype[np.floating]
) -> Linear:
    """Read a Dense; without a bias, its bias is zero."""
    arrays = {name: tensor.read(dtype) for name, tensor in checked_head(dense, config).items()}
    classifier = Linear(config.hidden_size, config.num_labels, init=Skeleton(dtype=dtype))
    classifier.load_state_dict({"bias": np.zeros(config.num_labels, dtype)} | arrays)
    return classifier


def _with_pooling(modules: SentenceModules, config: TransformerConfig) -> TransformerConfig:
    if config.head != "none":
        raise CheckpointError(
            f"{modules.transformer}: architectures: expected a model without a head, as "
            f"sentence-transformers loads it, got one for {config.head!r}"
        )
    most = config.max_position_embeddings
    return replace(
        config,
        head="none" if modules.dense is None else "classification",
        pooling=modules.pooling,
        sentence_transformers=True,
        normalize="Normalize" in modules.names,
        max_seq_length=min(modules.max_seq_length or most, most),
    )
