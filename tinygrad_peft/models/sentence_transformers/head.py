"""The head of a sentence-transformers folder: everything beside the encoder and its tokenizer."""

from collections.abc import Mapping
from pathlib import Path

from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError, listed
from tinygrad_peft.files import Transaction, write_json
from tinygrad_peft.models.hf import FLOATS, SaveDtype, StoredTensor, read_header, write_tensors
from tinygrad_peft.models.sentence_transformers.modules import (
    DENSE,
    MODULES,
    NORMALIZE,
    POOLING,
    SENTENCE,
    SETTINGS,
)
from tinygrad_peft.nn.config import Pooling, TransformerConfig
from tinygrad_peft.nn.module import mismatches

__all__ = ["HEAD_FILES", "checked_head", "stored_head", "write_head"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
HEAD_FILES = (
    *(MODULES, SENTENCE, SETTINGS, f"{POOLING}/{_CONFIG}"),
    *(f"{DENSE}/{_CONFIG}", f"{DENSE}/{_WEIGHTS}"),
)
# Each name is known to all versions.
_SWITCHES: Mapping[str, Pooling | None] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": "last",
}


def stored_head(dense: Path) -> dict[str, StoredTensor]:
    """Read the headers of a Dense: `weight` (num_labels, width), and `bias` if it has one.

    Raises CheckpointError if the file is missing or broken.
    """
    stored = read_header(dense / _WEIGHTS)
    return {key.removeprefix("linear."): tensor for key, tensor in stored.items()}


def checked_head(dense: Path, config: TransformerConfig) -> dict[str, StoredTensor]:
    """Read the headers of a Dense that fits a classifier's config.

    Raises CheckpointError that lists every misfit.
    """
    stored = stored_head(dense)
    shapes = {"weight": (config.num_labels, config.hidden_size), "bias": (config.num_labels,)}
    expected = {name: shape for name, shape in shapes.items() if name in stored or name == "weight"}
    problems = mismatches(expected, {name: tensor.shape for name, tensor in stored.items()})
    problems += [
        f"wrong dtype: {name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
        for name, tensor in stored.items()
        if tensor.dtype not in FLOATS
    ]
    if problems:
        raise CheckpointError(f"{dense} does not fit config.json:\n{listed(problems)}")
    return stored


def write_head(
    save: Transaction,
    config: TransformerConfig,
    classifier: Mapping[str, Array] | None,
    dtype: SaveDtype = "float32",
) -> None:
    """Write the modules of a model: its pooling and, for a classifier, a Dense with the logits.

    `classifier` has a `weight` (num_labels, width) and a `bias` (num_labels,). Without a
    `max_seq_length`, texts are cut where the model's positions end.
    """
    paths = {"Transformer": "", "Pooling": POOLING}
    if classifier is not None:
        paths["Dense"] = DENSE
        _write_dense(save, classifier, dtype)
    elif config.normalize:
        paths["Normalize"] = NORMALIZE
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    length = config.max_seq_length or config.max_position_embeddings
    switches = {name: config.pooling == mode for name, mode in _SWITCHES.items()}
    pooling = {"word_embedding_dimension": config.hidden_size, **switches, "include_prompt": True}
    written: Mapping[str, object] = {
        f"{POOLING}/{_CONFIG}": pooling,
        SENTENCE: {"max_seq_length": length, "do_lower_case": False},
        SETTINGS: {"prompts": {}, "default_prompt_name": None},
        MODULES: modules,
    }
    for name, value in written.items():
        write_json(save.path(name), value)


def _write_dense(save: Transaction, classifier: Mapping[str, Array], dtype: SaveDtype) -> None:
    out_features, in_features = classifier["weight"].shape
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": "bias" in classifier,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(save.path(f"{DENSE}/{_CONFIG}"), config)
    tensors = {f"linear.{name}": array for name, array in classifier.items()}
    write_tensors(save.path(f"{DENSE}/{_WEIGHTS}"), tensors, dtype)
