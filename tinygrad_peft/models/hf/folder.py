"""A checkpoint in Hugging Face layout: config.json beside model.safetensors or its shards."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import CheckpointError, ConfigError, listed, shortened, told
from tinygrad_peft.files import PICKLES, is_plain_name, read_json_object, saving, write_json
from tinygrad_peft.models.families import config_from_json, config_to_json, family
from tinygrad_peft.models.families.family import Family
from tinygrad_peft.models.hf.safetensors import (
    FLOATS,
    SaveDtype,
    StoredTensor,
    file_size,
    read_header,
    write_tensors,
)
from tinygrad_peft.nn.config import TransformerConfig
from tinygrad_peft.nn.init import Skeleton
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.nn.transformer import Transformer

__all__ = [
    "check_fit",
    "encoder_folder",
    "read_config",
    "read_model",
    "read_tensors",
    "write_model",
]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def read_config(path: Path, *, check_weights: bool = True) -> TransformerConfig:
    """Read the config of the checkpoint in the folder `path`, without reading weights.

    Needs no weights, but their names decide what config.json leaves open if `check_weights` is set.
    """
    if check_weights and any((path / name).exists() for name in (_WEIGHTS, _INDEX)):
        return _open(path)[1]
    with _naming_file(path / _CONFIG):
        return config_from_json(read_json_object(path / _CONFIG))


def read_model(path: Path, dtype: np.dtype[np.floating]) -> Transformer:
    """Read the model in the folder `path`."""
    known, config, stored, head = _checked(path)
    model = Transformer(config, Skeleton(dtype=dtype))
    names = {known.paths.theirs(p): p for p, _ in model.named_parameters()}
    state = {p: _read(known, name, stored[name], dtype) for name, p in names.items()}
    tied = None if head is None else head.read(dtype)
    if tied is not None and not np.array_equal(tied, state["embed_tokens.weight"]):
        raise CheckpointError(
            f"{path}: lm_head.weight differs from the token embedding, and config.json ties them: "
            "set tie_word_embeddings to false there if the head is meant to be separate"
        )
    model.load_state_dict(state)
    return model


def encoder_folder(path: Path) -> Path:
    """Return the folder of config.json: `path`, or 0_Transformer in it.

    sentence-transformers wrote the latter before version 0.4.
    """
    old = path / "0_Transformer"
    return old if (old / _CONFIG).is_file() and not (path / _CONFIG).is_file() else path


def check_fit(path: Path) -> None:
    """Raise what `read_model` raises for faults that headers show; reads no weights."""
    _checked(path)


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the headers of all tensors, by their names in the files."""
    if (path / _WEIGHTS).exists():
        return read_header(path / _WEIGHTS)
    if (path / _INDEX).exists():
        return _sharded(path)
    pickles = sorted(f.name for f in path.glob("*") if f.suffix.lower() in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{path} has its weights in {shortened(', '.join(pickles))}, and a pickle can run any "
            "code: save them as safetensors, with save_pretrained of transformers or "
            "safetensors.torch"
        )
    raise CheckpointError(f"{path} holds neither {_WEIGHTS} nor {_INDEX}")


def _checked(
    path: Path,
) -> tuple[Family, TransformerConfig, dict[str, StoredTensor], StoredTensor | None]:
    """Open a checkpoint and check that it fits; return also a head that repeats the embedding."""
    known, config, stored = _open(path)
    if config.num_hidden_layers > len(stored):  # checked before building so many
        raise CheckpointError(
            f"{path} does not fit its {_CONFIG}: num_hidden_layers is {config.num_hidden_layers}, "
            f"and there are {len(stored)} tensors"
        )
    head = _drop_tied_head(config, stored)
    parameters = Transformer(config, Skeleton()).named_parameters()
    _check(path, known, {known.paths.theirs(p): t.shape for p, t in parameters}, stored)
    return known, config, stored, head


def write_model(model: Transformer, path: Path, dtype: SaveDtype) -> None:
    """Write config.json and model.safetensors into the folder `path`, both or neither."""
    expressed, state = _expressed(model)
    config = config_to_json(expressed)
    known = family(expressed.model_type)
    arrays: dict[str, Array] = {}
    for name, array in state.items():
        stored = known.path(expressed, name)
        arrays[stored] = array.T if known.is_transposed(stored) else array
    with saving(path, size=file_size(arrays, dtype)) as save:
        write_tensors(save.path(_WEIGHTS), arrays, dtype)
        write_json(save.path(_CONFIG), {**config, "torch_dtype": dtype})


def _expressed(model: Transformer) -> tuple[TransformerConfig, dict[str, Array]]:
    """Return the config and the weights as a checkpoint can hold them.

    If merging gave a layer a bias, all layers of its kind get one, of zeros if they had none.
    """
    state, config = model.state_dict(), model.config
    plain = Transformer(config, Skeleton()).state_dict()
    added = [name for name in state if name not in plain]
    if not added:
        return config, state
    config = dataclasses.replace(
        config,
        attention_bias=config.attention_bias or any(".attn." in name for name in added),
        mlp_bias=config.mlp_bias or any(".mlp." in name for name in added),
    )
    wanted = Transformer(config, Skeleton()).state_dict()
    problems = [f"{name}: unknown to {config.model_type}" for name in added if name not in wanted]
    if problems:
        raise CheckpointError(f"weights that no checkpoint has:\n{listed(problems)}")
    return config, {name: state.get(name, zeros) for name, zeros in wanted.items()}


def _open(path: Path) -> tuple[Family, TransformerConfig, dict[str, StoredTensor]]:
    """Read the family, the config, and the headers by name without the family's prefix."""
    raw = read_json_object(path / _CONFIG)
    with _naming_file(path / _CONFIG):
        known = family(raw.get("model_type"))
        stored = _bare(path, known, read_tensors(path))
        config = config_from_json(raw, {name: tensor.shape for name, tensor in stored.items()})
    return known, config, stored


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Put the file's path before errors in its settings."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sharded(path: Path) -> dict[str, StoredTensor]:
    try:
        places = msgspec.convert(read_json_object(path / _INDEX).get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path / _INDEX}: weight_map: {error}") from error
    names = sorted(set(places.values()))
    outside = [repr(name) for name in names if not is_plain_name(name)]
    if outside:
        raise CheckpointError(f"{path / _INDEX}: expected files of the folder, got:{told(outside)}")
    there = {file.name for file in path.iterdir()}
    if absent := [name for name in names if name not in there]:
        raise CheckpointError(f"{path} lacks files that {_INDEX} lists:{told(absent)}")
    shards = {name: read_header(path / name) for name in names}
    problems = [f"missing: {k} in {f}" for k, f in places.items() if k not in shards[f]]
    if problems:
        raise CheckpointError(f"{path / _INDEX} does not fit the shards:\n{listed(problems)}")
    return {key: shards[file][key] for key, file in places.items()}


def _bare(path: Path, known: Family, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    named = [(known.bare_name(key), tensor) for key, tensor in stored.items()]
    bare = {name: tensor for name, tensor in named if name is not None}
    doubled = [
        f"{tensor.key} and {bare[name].key} are the same weight"
        for name, tensor in named
        if name is not None and bare[name] is not tensor
    ]
    if doubled:
        raise CheckpointError(f"{path} has duplicate weights:\n{listed(doubled)}")
    return bare


def _drop_tied_head(
    config: TransformerConfig, stored: dict[str, StoredTensor]
) -> StoredTensor | None:
    """Remove a head that repeats the token embedding from `stored`, and return it."""
    if config.head != "lm" or not config.tie_word_embeddings or "lm_head.weight" not in stored:
        return None
    head = stored.pop("lm_head.weight")
    return head if head.dtype in FLOATS else None


def _check(
    path: Path, known: Family, shapes: Mapping[str, Shape], stored: Mapping[str, StoredTensor]
) -> None:
    """Raise CheckpointError that lists all misfits by the file's own names."""
    prefixed = any(tensor.key.startswith(f"{known.prefix}.") for tensor in stored.values())
    expected = {}
    for name, shape in shapes.items():
        key = known.with_prefix(name) if prefixed else name
        key = stored[name].key if name in stored else key
        expected[key] = shape[::-1] if known.is_transposed(name) else shape
    problems = mismatches(expected, {tensor.key: tensor.shape for tensor in stored.values()})
    problems += [
        f"wrong dtype: {tensor.key} is {tensor.dtype}, expected one of {', '.join(FLOATS)}"
        for tensor in stored.values()
        if tensor.dtype not in FLOATS
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit its {_CONFIG}:\n{listed(problems)}")


def _read(known: Family, name: str, tensor: StoredTensor, dtype: np.dtype[np.floating]) -> Array:
    array = tensor.read(dtype)
    return np.ascontiguousarray(array.T) if known.is_transposed(name) else array
