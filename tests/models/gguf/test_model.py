"""Models from GGUF files that the test writes from golden checkpoints, as llama.cpp would."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tinygrad_peft.arrays import AnyArray, Array
from tinygrad_peft.errors import CheckpointError, ConfigError, MissingExtraError
from tinygrad_peft.models import load_config, load_model, save_model
from tinygrad_peft.nn import Transformer, TransformerConfig

Golden = Callable[[str], Path]

IDS = np.arange(24).reshape(2, 12)
NAMES = {
    "embed_tokens": "token_embd",
    "blocks.": "blk.",
    ".attn.q_proj": ".attn_q",
    ".attn.k_proj": ".attn_k",
    ".attn.v_proj": ".attn_v",
    ".attn.o_proj": ".attn_output",
    ".mlp_norm": ".ffn_norm",
    ".mlp.gate_proj": ".ffn_gate",
    ".mlp.up_proj": ".ffn_up",
    ".mlp.down_proj": ".ffn_down",
    "final_norm": "output_norm",
    "lm_head": "output",
}


@pytest.fixture
def gguf() -> ModuleType:
    module: ModuleType = pytest.importorskip("gguf", reason="needs the gguf extra")
    return module


def settings(config: TransformerConfig) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
    }


def in_pairs(weight: Array, heads: int) -> Array:
    """Reorder as llama.cpp does: row i of a head's first half, then row i of its second."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(weight.shape)


def tensors(model: Transformer) -> dict[str, AnyArray]:
    named: dict[str, AnyArray] = {}
    for path, array in model.state_dict().items():
        name = path
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        heads = {".attn_q.": model.config.num_attention_heads}
        heads[".attn_k."] = model.config.num_key_value_heads
        count = next((count for part, count in heads.items() if part in name), 0)
        named[name] = in_pairs(array, count) if count else array
    return named


def write(
    gguf: ModuleType,
    path: Path,
    values: dict[str, object],
    arrays: dict[str, AnyArray],
    quant: str = "F32",
) -> Path:
    """Write a GGUF file; matrices are quantised, norms are not. None leaves a setting out."""
    writer = gguf.GGUFWriter(path, str(values["general.architecture"]))
    for key, value in values.items():
        if isinstance(value, bool | str) and key != "general.architecture":
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    for name, array in arrays.items():
        kind = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else quant]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama(golden: Golden) -> Transformer:
    return load_model(golden("llama"))


# ---------- loading ----------


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_gguf_file_gives_the_original_model(
    gguf: ModuleType, golden: Golden, tmp_path: Path, name: str
) -> None:
    model = load_model(golden("llama"))
    arrays = tensors(model)
    if name == "llama-tied":
        arrays["token_embd.weight"] = arrays.pop("output.weight")
    file = write(gguf, tmp_path / "m.gguf", settings(model.config), arrays)
    found = load_model(file)
    assert found.config.tie_word_embeddings == (name == "llama-tied")
    assert load_config(file) == found.config
    assert load_config(file.rename(tmp_path / "M.GGUF")) == found.config
    expected = model.state_dict()
    for path, array in found.state_dict().items():
        source = "lm_head.weight" if (name, path) == ("llama-tied", "embed_tokens.weight") else path
        np.testing.assert_array_equal(array, expected[source], err_msg=path)
        assert array.flags.c_contiguous
        assert array.flags.writeable
    if name == "llama":
        # This file has no tokenizer, and so no special tokens.
        assert found.config == dataclasses.replace(
            model.config, bos_token_id=None, eos_token_id=None, pad_token_id=None
        )
        np.testing.assert_array_equal(found(IDS).data, model(IDS).data)


def wide() -> Transformer:
    """Give rows 64 numbers, since quantised blocks have 32."""
    config = TransformerConfig(
        vocab_size=700,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=32,
        model_type="llama",
        norm="rms_norm",
        positions="rotary",
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
    )
    return Transformer(config)


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_match_the_gguf_package(
    gguf: ModuleType, tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinygrad_peft.models.gguf.model.BLOCKS_AT_ONCE", 100)
    model = wide()
    arrays = tensors(model)
    kind = gguf.GGMLQuantizationType[quant]
    file = write(gguf, tmp_path / "m.gguf", settings(model.config), arrays, quant)
    found = load_model(file, dtype=np.float64)
    for name, expected in tensors(found).items():
        rounded = gguf.quants.dequantize(gguf.quants.quantize(arrays[name], kind), kind)
        exact = arrays[name] if expected.ndim == 1 else rounded
        np.testing.assert_array_equal(expected, exact.reshape(expected.shape), err_msg=name)


def test_optional_settings_may_be_left_out(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    values = settings(llama.config)
    for key in ("llama.rope.freq_base", "llama.rope.dimension_count"):
        del values[key]
    config = load_config(write(gguf, tmp_path / "m.gguf", values, tensors(llama)))
    assert config.rope_theta == 10_000.0
    assert config.head_dim == 4


def test_linear_scaling_of_positions_is_read(
    gguf: ModuleType, golden: Golden, tmp_path: Path
) -> None:
    model = load_model(golden("llama"))
    values = settings(model.config)
    values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    config = load_config(write(gguf, tmp_path / "m.gguf", values, tensors(model)))
    assert config.rope_scaling is not None
    assert (config.rope_scaling.rope_type, config.rope_scaling.factor) == ("linear", 2.0)


def test_a_model_from_gguf_is_saved_in_hugging_face_layout(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    file = write(gguf, tmp_path / "m.gguf", settings(llama.config), tensors(llama))
    save_model(load_model(file), tmp_path / "saved")
    np.testing.assert_array_equal(load_model(tmp_path / "saved")(IDS).data, llama(IDS).data)


# ---------- errors ----------


def test_another_architecture_is_refused(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    values = settings(llama.config) | {"general.architecture": "qwen2"}
    file = write(gguf, tmp_path / "m.gguf", values, {})
    with pytest.raises(ConfigError, match=r"general\.architecture: expected 'llama', got 'qwen2'"):
        load_model(file)


def test_all_faults_of_the_metadata_are_in_one_error(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    values = settings(llama.config) | {
        "llama.block_count": "two",
        "llama.rope.dimension_count": 2,
        "llama.expert_count": 8,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
    }
    del values["llama.attention.layer_norm_rms_epsilon"]
    arrays = tensors(llama) | {"rope_freqs.weight": np.ones(2, np.float32)}
    del arrays["token_embd.weight"]
    file = write(gguf, tmp_path / "m.gguf", values, arrays)
    with pytest.raises(ConfigError) as caught:
        load_model(file)
    assert str(caught.value).splitlines() == [
        f"{file} cannot be loaded:",
        "  - rope_freqs.weight: custom frequencies are not supported",
        "  - the tensor token_embd.weight is missing",
        "  - llama.rope.dimension_count: expected 4 (nothing else is supported), got 2",
        "  - llama.expert_count: expected 0 (nothing else is supported), got 8",
        "  - llama.block_count: expected a positive integer, got 'two'",
        "  - llama.attention.layer_norm_rms_epsilon: expected a positive number, got nothing",
        "  - llama.rope.scaling.type: expected none or linear, got 'yarn'",
    ]


def test_all_tensors_that_do_not_fit_are_in_one_error(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    arrays = tensors(llama)
    arrays["blk.0.attn_k.weight"] = np.zeros((4, 16), np.float32)
    arrays["blk.0.attn_q.bias"] = np.zeros(16, np.float32)
    del arrays["output_norm.weight"]
    file = write(gguf, tmp_path / "m.gguf", settings(llama.config), arrays)
    with pytest.raises(CheckpointError) as caught:
        load_model(file)
    assert str(caught.value).splitlines() == [
        f"{file} does not fit its metadata:",
        "  - missing: output_norm.weight (16,)",
        "  - unexpected: blk.0.attn_q.bias (16,)",
        "  - wrong shape: blk.0.attn_k.weight is (4, 16), expected (8, 16)",
    ]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    gguf: ModuleType, llama: Transformer, tmp_path: Path, share: float
) -> None:
    file = write(gguf, tmp_path / "m.gguf", settings(llama.config), tensors(llama))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError) as caught:
        load_model(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    if share > 0.9:
        assert str(caught.value) == f"{file} is truncated or damaged: it ends within output.weight"


def test_integers_in_place_of_weights_are_refused(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in settings(llama.config).items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    for name, array in tensors(llama).items():
        writer.add_tensor(name, array.astype(np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"token_embd\.weight cannot be dequantised: .*I32"):
        load_model(file)


def test_rows_of_partial_blocks_are_refused(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    file = write(gguf, tmp_path / "m.gguf", settings(llama.config), tensors(llama))
    # The kind in the header of the first tensor, from F32 to Q8_0.
    name = b"token_embd.weight"
    content = bytearray(file.read_bytes())
    place = content.index(name) + len(name) + 4 + 2 * 8
    assert content[place : place + 4] == bytes(4)
    content[place] = int(gguf.GGMLQuantizationType.Q8_0)
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"token_embd\.weight: expected rows of a multiple of 32, got 16"
    ):
        load_model(file)


def test_the_missing_extra_is_named(
    gguf: ModuleType, llama: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(gguf, tmp_path / "m.gguf", settings(llama.config), tensors(llama))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tinygrad-peft\[gguf\]'"):
        load_model(file)


def test_no_more_layers_are_built_than_there_are_tensors(
    gguf: ModuleType, llama: Transformer, tmp_path: Path
) -> None:
    values = settings(llama.config) | {"llama.block_count": 9_999}
    file = write(gguf, tmp_path / "m.gguf", values, tensors(llama))
    with pytest.raises(
        CheckpointError, match=r"llama\.block_count is 9999, and there are 21 tensors"
    ):
        load_model(file)


def test_nan_is_refused(gguf: ModuleType, llama: Transformer, tmp_path: Path) -> None:
    values = settings(llama.config) | {"llama.rope.freq_base": float("inf")}
    file = write(gguf, tmp_path / "m.gguf", values, tensors(llama))
    with pytest.raises(ConfigError, match=r"rope.freq_base: expected a positive number, got inf"):
        load_model(file)
