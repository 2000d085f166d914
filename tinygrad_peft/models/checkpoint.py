"""Load and save models: `load_model`, `load_config`, `save_model`."""

import dataclasses
import os
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from tinygrad_peft.errors import CheckpointError, ConfigError, listed, shortened
from tinygrad_peft.files import (
    read_optional_object,
    refuse_pickle,
    replace_earlier_work,
    saving,
    settled,
)
from tinygrad_peft.models.families import checkpoint_path, config_from_json, config_to_json
from tinygrad_peft.models.fetch import name_and_revision
from tinygrad_peft.models.gguf import read_gguf, read_gguf_config
from tinygrad_peft.models.hf import SaveDtype, read_config, read_model, write_model
from tinygrad_peft.models.sentence_transformers import (
    read_modules,
    read_sentence_config,
    read_sentence_model,
    write_sentence_model,
)
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.finite import check_finite
from tinygrad_peft.nn.init import Skeleton
from tinygrad_peft.nn.transformer import Transformer

__all__ = ["load_config", "load_model", "refuse_adapter", "save_model"]


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: npt.DTypeLike = np.float32,
    allow_nonfinite: bool = False,
) -> Transformer:
    """Load the model in a checkpoint, in evaluation mode.

    `path` is a folder in Hugging Face layout (config.json with model.safetensors or its shards;
    model_type gpt2, llama or bert), one of sentence-transformers, or a .gguf file of the llama
    architecture. Weights become float32, or float64 by `dtype`, whatever their stored dtype.
    `with_classifier` keeps the pooling of a sentence-transformers folder.

    A causal model gives logits (B, T, V), a sequence classifier class logits (B, C), and a bare
    encoder hidden states (B, T, D). Pretraining heads of BERT (`cls.*`) are left out.

    Weights that are NaN or infinite are an error that names them, or with `allow_nonfinite` a
    NonFiniteWarning.

    Raises:
        CheckpointError: a file that is missing or broken, or tensors that do not fit: lists every
            missing, unexpected or mis-shaped tensor and wrong dtype, by the checkpoint's names;
            or weights that are not finite.
        ConfigError: an unknown model_type, settings that are not supported, another dtype.
    """
    place, wanted = _existing(path), _float_dtype(dtype)
    model = read_gguf(place, wanted) if place.is_file() else _read_folder(place, wanted)
    named = ((checkpoint_path(model.config, p), w.data) for p, w in model.named_parameters())
    check_finite(place, named, allowed=allow_nonfinite)
    model.name_or_path, model.revision = name_and_revision(path)
    model.eval()
    return model


def load_config(path: str | os.PathLike[str]) -> TransformerConfig:
    """Load the config of a checkpoint as `load_model` sees it, without reading weights.

    Needs no weights. Raises what `load_model` raises, except for errors that only weights show.
    """
    place = _existing(path)
    if place.is_file():
        return read_gguf_config(place)
    modules = read_modules(place)
    return read_config(place) if modules is None else read_sentence_config(modules)


def save_model(
    model: Transformer,
    path: str | os.PathLike[str],
    *,
    dtype: SaveDtype = "float32",
    overwrite: bool = False,
) -> None:
    """Write a folder that `load_model` and transformers load, with the same logits.

    The folder gets config.json and model.safetensors, both or neither. With `saving`, other files
    are saved together with them: its tokenizer, say. A classifier that no class of transformers
    computes, with mean pooling or without a pooler, and a model from a sentence-transformers folder
    get a folder that SentenceTransformer loads, with the logits as embeddings
    (`tinygrad_peft.models.sentence_transformers`).

    With `overwrite` no file of a model, adapter or comparison that the folder had stays; other
    files do.

    Warns with PrecisionWarning about weights that are too small for the dtype and become zero.

    Raises:
        ConfigError: the model's family has no checkpoints, the dtype is unknown, or the folder has
            a model, an adapter or a comparison, without `overwrite`.
        CheckpointError: modules that no checkpoint has (an unmerged adapter, say), a number too
            large for the dtype, or a folder that cannot be written.
    """
    if dtype not in get_args(SaveDtype):
        raise ConfigError(f"dtype: expected one of {', '.join(get_args(SaveDtype))}, got {dtype!r}")
    _check_plain(model)
    _check_expressible(model.config)
    with saving(Path(path)) as save:
        replace_earlier_work(save, overwrite=overwrite)
        write = write_sentence_model if _is_of_sentence_transformers(model.config) else write_model
        write(model, save.staged, dtype)


def _is_of_sentence_transformers(config: TransformerConfig) -> bool:
    encoder = config.sentence_transformers and config.head == "none"
    return encoder or config.is_sentence_classifier


def _read_folder(path: Path, dtype: np.dtype[np.floating]) -> Transformer:
    modules = read_modules(path)
    return read_model(path, dtype) if modules is None else read_sentence_model(modules, dtype)


def refuse_adapter(path: Path) -> None:
    """Raise CheckpointError for an adapter's folder without a model, with the name of its base."""
    settings = path / "adapter_config.json"
    weights = ("model.safetensors", "model.safetensors.index.json")
    is_adapter = settings.is_file() or (path / "recipe.json").is_file()
    is_model = (path / "config.json").is_file() and any((path / w).is_file() for w in weights)
    if is_model or not is_adapter:
        return
    name = read_optional_object(settings).get("base_model_name_or_path")
    base = f", {shortened(repr(name))} by its settings" if isinstance(name, str) and name else ""
    raise CheckpointError(
        f"{path} is an adapter's folder, not a model's: expected its base as the model{base}, "
        "and this folder as the adapter"
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    if not place.exists():
        raise CheckpointError(f"{place} does not exist: expected a folder or a .gguf file")
    refuse_pickle(place)
    refuse_adapter(place)
    if place.is_file() and place.suffix.lower() != ".gguf":
        raise CheckpointError(
            f"{place} is a file: expected the folder with it and config.json, or a .gguf file"
        )
    return settled(place) if place.is_dir() else place


def _float_dtype(dtype: npt.DTypeLike) -> np.dtype[np.floating]:
    wanted = np.dtype(dtype)
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if wanted == known:
            return known
    raise ConfigError(f"dtype: expected float32 or float64, got {wanted}")


def _check_plain(model: Transformer) -> None:
    """Raise CheckpointError unless the model has exactly the modules that its config builds."""
    plain = Transformer(model.config, Skeleton())
    expected = {path: type(module) for path, module in plain.named_modules()}
    found = {path: type(module) for path, module in model.named_modules()}
    problems = [
        *(
            f"{p or 'the model'}: expected {_kind(expected, p)}, got {t.__name__}"
            for p, t in found.items()
            if expected.get(p) is not t
        ),
        *(f"{p} is missing" for p in expected if p not in found),
    ]
    if problems:
        raise CheckpointError(
            f"only a plain model can be saved; merge or remove adapters first:\n{listed(problems)}"
        )


def _kind(expected: dict[str, type], path: str) -> str:
    return expected[path].__name__ if path in expected else "no module"


def _check_expressible(config: TransformerConfig) -> None:
    """Raise ConfigError unless the family's config.json can express the whole config.

    The head of a sentence-transformers folder is not in config.json.
    """
    if config.is_sentence_classifier:
        config = dataclasses.replace(config, head="none")
    pooler = {"pooler.dense.weight": (0,)} if config.pooler else {}
    back = config_from_json(config_to_json(config), pooler)
    wanted, got = (dataclasses.asdict(_essential(c)) for c in (config, back))
    lost = [
        f"{k}={wanted[k]!r} would read back as {got[k]!r}" for k in wanted if wanted[k] != got[k]
    ]
    if lost:
        raise ConfigError(f"invalid config for a {config.model_type} checkpoint:\n{listed(lost)}")


def _essential(config: TransformerConfig) -> TransformerConfig:
    """Reset settings without effect: dropout, and a classifier's where the head is another."""
    config = dataclasses.replace(
        config,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        sentence_transformers=False,
        max_seq_length=None,
        normalize=False,
        embedding_dropout=None,
        classifier_dropout=None,
    )
    if config.head == "classification":
        return config
    return dataclasses.replace(
        config, num_labels=0, label_names=(), pooling="cls", problem_type=None
    )
