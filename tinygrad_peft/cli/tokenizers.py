"""The tokenizer of a model with an adapter."""

import warnings
from pathlib import Path

from tinygrad_peft.errors import AdapterWarning, CheckpointError
from tinygrad_peft.models import Tokenizer, load_config, load_tokenizer

__all__ = ["tokenizer_of"]


def tokenizer_of(model: Path, adapter: Path | None) -> Tokenizer:
    """Load the tokenizer that an adapter was trained with: its folder's, or else the model's.

    Warns, with AdapterWarning, where the two differ. Raises CheckpointError for an adapter's
    tokenizer with more ids than the model's embedding has rows, and where there is none.
    """
    if adapter is None or not (adapter / "tokenizer.json").is_file():
        return load_tokenizer(model)
    own, base = load_tokenizer(adapter), _tokenizer_of_model(model)
    different = [] if base is None else own.differences(base)
    rows = load_config(model).vocab_size
    if own.size > rows and (different or base is None):
        raise CheckpointError(
            f"{adapter}: its tokenizer has {own.size} ids, and the model's embedding {rows} rows: "
            f"resize the model as for its training (in transformers, resize_token_embeddings("
            f"{own.size}) and save_pretrained), and name that folder as the model"
        )
    if different:
        how = ", ".join(different)
        message = f"{adapter}: its tokenizer is used, and not the model's: it has {how}"
        warnings.warn(message, AdapterWarning, stacklevel=2)
    return own if base is None else own.completed(base)


def _tokenizer_of_model(model: Path) -> Tokenizer | None:
    """Load a model's tokenizer, if it has one that can be read."""
    try:
        return load_tokenizer(model)
    except CheckpointError:
        return None
