"""Models of the llama architecture from GGUF files, as llama.cpp writes them.

llama.cpp orders the rows of q and k differently from Hugging Face: it rotates rows 2i and 2i + 1 of
a head together, Hugging Face rows i and i + D/2.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tinygrad_peft.arrays import AnyArray, Array, Shape
from tinygrad_peft.errors import CheckpointError, ConfigError, MissingExtraError, listed
from tinygrad_peft.models.families.paths import PathMap
from tinygrad_peft.models.gguf.ggml_types import GGML_TYPES
from tinygrad_peft.models.gguf.header import GgufHeader, TensorInfo, Value, read_gguf_header
from tinygrad_peft.nn.config import RopeScaling, TransformerConfig
from tinygrad_peft.nn.init import Skeleton
from tinygrad_peft.nn.module import mismatches
from tinygrad_peft.nn.transformer import Transformer

__all__ = [
    "check_gguf_fit",
    "gguf_config",
    "read_gguf",
    "read_gguf_arrays",
    "read_gguf_config",
]

_PATHS = PathMap(
    {
        "embed_tokens": "token_embd",
        "blocks.#": "blk.#",
        "blocks.#.attn_norm": "blk.#.attn_norm",
        "blocks.#.attn.q_proj": "blk.#.attn_q",
        "blocks.#.attn.k_proj": "blk.#.attn_k",
        "blocks.#.attn.v_proj": "blk.#.attn_v",
        "blocks.#.attn.o_proj": "blk.#.attn_output",
        "blocks.#.mlp_norm": "blk.#.ffn_norm",
        "blocks.#.mlp.gate_proj": "blk.#.ffn_gate",
        "blocks.#.mlp.up_proj": "blk.#.ffn_up",
        "blocks.#.mlp.down_proj": "blk.#.ffn_down",
        "final_norm": "output_norm",
        "lm_head": "output",
    }
)
# Given rows, gguf takes few at a time; given one row of many blocks, it is ten times faster.
BLOCKS_AT_ONCE = 8_192
_LLAMA = "llama."  # prefix of the architecture's keys


def read_gguf_config(path: Path) -> TransformerConfig:
    """Read the config of the model in a GGUF file, without its weights."""
    return gguf_config(path, read_gguf_header(path))


def read_gguf(path: Path, dtype: np.dtype[np.floating]) -> Transformer:
    """Read the model in a GGUF file and dequantise its weights."""
    header = read_gguf_header(path)
    config = gguf_config(path, header)
    check_gguf_fit(path, header, config)
    model = Transformer(config, Skeleton(dtype=dtype))
    infos = {info.name: info for info in header.tensors}
    data: AnyArray = np.memmap(path, np.uint8, "r")
    state = {}
    for own, _ in model.named_parameters():
        info = infos[_PATHS.theirs(own)]
        array = _dequantised(path, data, info).astype(dtype, copy=False)
        state[own] = _in_halves(array, _heads(config, own))
    model.load_state_dict(state)
    return model


def read_gguf_arrays(path: Path) -> Iterator[tuple[str, Array]]:
    """Dequantise the tensors of a GGUF file one by one: float32, by their names there."""
    data: AnyArray = np.memmap(path, np.uint8, "r")
    for info in read_gguf_header(path).tensors:
        yield info.name, _dequantised(path, data, info)


def check_gguf_fit(path: Path, header: GgufHeader, config: TransformerConfig) -> None:
    """Raise CheckpointError that lists the tensors that do not fit the metadata."""
    if config.num_hidden_layers > len(header.tensors):  # checked before building so many
        raise CheckpointError(
            f"{path} does not fit its metadata: {_LLAMA}block_count is {config.num_hidden_layers}, "
            f"and there are {len(header.tensors)} tensors"
        )
    parameters = Transformer(config, Skeleton()).named_parameters()
    problems = mismatches(
        {_PATHS.theirs(path): parameter.shape for path, parameter in parameters},
        {info.name: info.shape for info in header.tensors},
    )
    if problems:
        raise CheckpointError(f"{path} does not fit its metadata:\n{listed(problems)}")


class _Metadata:
    """Typed look-ups of the architecture's keys, which collect the faults."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values
        self.problems: list[str] = []

    def integer(self, key: str, default: int | None = None) -> int:
        """Look up a positive integer; anything else is a problem, and gives 1."""
        value = self.values.get(_LLAMA + key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        return self._problem(key, value, "a positive integer")

    def number(self, key: str, default: float | None = None) -> float:
        """Look up a float32 as its shortest decimal: 1e-05, not 9.99999974e-06."""
        value = self.values.get(_LLAMA + key, default)
        if (
            not isinstance(value, bool | str | list | None)
            and 0 < value <= np.finfo(np.float32).max
        ):
            return float(str(np.float32(value)))
        return self._problem(key, value, "a positive number")

    def token(self, name: str) -> int | None:
        """Look up the id of a special token, if the file's tokenizer has it."""
        value = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) else None

    def same(self, key: str, expected: int) -> None:
        """Add a problem if the key has another value."""
        value = self.values.get(_LLAMA + key, expected)
        if value != expected:
            self._problem(key, value, f"{expected} (nothing else is supported)")

    def _problem(self, key: str, value: Value | None, expected: str) -> int:
        found = "nothing" if value is None else repr(value)
        self.problems.append(f"{_LLAMA}{key}: expected {expected}, got {found}")
        return 1


def gguf_config(path: Path, header: GgufHeader) -> TransformerConfig:
    """Read the config in the metadata.

    Raises ConfigError that lists what is missing, wrong or not supported.
    """
    kind = header.metadata.get("general.architecture")
    if kind != "llama":
        raise ConfigError(f"{path}: general.architecture: expected 'llama', got {kind!r}")
    values = _Metadata(header.metadata)
    shapes = {info.name: info.shape for info in header.tensors}
    if "rope_freqs.weight" in shapes:
        values.problems.append("rope_freqs.weight: custom frequencies are not supported")
    if "token_embd.weight" not in shapes:
        values.problems.append("the tensor token_embd.weight is missing")
    config = _llama(values, shapes)
    if values.problems:
        raise ConfigError(f"{path} cannot be loaded:\n{listed(values.problems)}")
    return config


def _llama(values: _Metadata, shapes: Mapping[str, Shape]) -> TransformerConfig:
    """Build the config; the caller raises the problems in `values`."""
    hidden, heads = values.integer("embedding_length"), values.integer("attention.head_count")
    head_dim = values.integer("attention.key_length", max(2, hidden // heads))
    values.same("attention.value_length", head_dim)
    values.same("rope.dimension_count", head_dim)
    values.same("expert_count", 0)
    return TransformerConfig(
        model_type="llama",
        vocab_size=shapes.get("token_embd.weight", (1,))[0],
        hidden_size=hidden,
        num_hidden_layers=values.integer("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=values.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=values.integer("feed_forward_length"),
        max_position_embeddings=values.integer("context_length"),
        norm="rms_norm",
        norm_eps=values.number("attention.layer_norm_rms_epsilon"),
        positions="rotary",
        rope_theta=values.number("rope.freq_base", 10_000.0),
        rope_scaling=_scaling(values),
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=values.token("bos"),
        eos_token_id=values.token("eos"),
        pad_token_id=values.token("padding"),
    )


def _scaling(values: _Metadata) -> RopeScaling | None:
    kind = values.values.get(f"{_LLAMA}rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        values.problems.append(f"{_LLAMA}rope.scaling.type: expected none or linear, got {kind!r}")
    return RopeScaling(rope_type="linear", factor=values.number("rope.scaling.factor"))


def _dequantised(path: Path, data: AnyArray, info: TensorInfo) -> Array:
    """Dequantise a tensor to a new float32 array."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise MissingExtraError(
            "gguf is not installed: pip install 'tinygrad-peft[gguf]'"
        ) from None
    out = np.empty(info.shape, np.float32)
    flat = out.reshape(-1)
    try:
        kind = GGMLQuantizationType(info.ggml_type)
        _, block, size = GGML_TYPES[info.ggml_type]
        stored = data[info.offset : info.offset + info.nbytes].reshape(-1, size)
        for start in range(0, len(stored), BLOCKS_AT_ONCE):
            part = quants.dequantize(stored[start : start + BLOCKS_AT_ONCE].reshape(1, -1), kind)
            flat[start * block : (start + BLOCKS_AT_ONCE) * block] = part[0]
    except (KeyError, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path}: {info.name} cannot be dequantised: {error}") from error
    return out


def _heads(config: TransformerConfig, path: str) -> int:
    """Count the heads whose rows llama.cpp reorders in a weight; 0 for most weights."""
    if path.endswith(".q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if path.endswith(".k_proj.weight") else 0


def _in_halves(weight: Array, heads: int) -> Array:
    """Reorder the rows of each head from pairs (2i, 2i + 1) to halves (i, i + D/2)."""
    if not heads:
        return weight
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
