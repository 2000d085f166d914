from dataclasses import replace

import numpy as np
import pytest

from tests.peft.small import BERT_CLASSIFIER, GPT2, IDS, LLAMA, logits, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import Init, LayerCache, NoPrefix, TransformerConfig
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import Host, PeftModel, count_recipe, get_peft_model, parse_method
from tinygrad_peft.reference import PrefixTuning, Reparameterization
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_prefix import PrefixTuningConfig, ProjectedPrefix, TrainedPrefix

TEXT = np.array([[7, 30, 2, 41]])


def prefix_of(config: TransformerConfig, length: int, seed: int = 0) -> TrainedPrefix:
    columns = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    matrix = np.random.default_rng(seed).normal(size=(length, columns))
    return TrainedPrefix(NoPrefix(), matrix, config)


def projected(config: PrefixTuningConfig, model: TransformerConfig = LLAMA) -> ProjectedPrefix:
    return ProjectedPrefix(NoPrefix(), config, model, Init(0, np.float64))


def trained(peft: PeftModel) -> dict[str, Array]:
    return {name: p.data for name, p in peft.record.stored_parameters(0).items()}


# ---------- the formula ----------


@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT_CLASSIFIER], ids=["gpt2", "llama", "bert"])
def test_every_layer_attends_to_its_prefix_like_the_reference(
    config: TransformerConfig, rng: np.random.Generator
) -> None:
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    prefix = prefix_of(config, 3)
    reference = PrefixTuning(layers, heads, size, 3)
    stored = prefix.prompt_embeddings.data.reshape(3, layers, 2, heads, size)
    reference.prefix = stored.transpose(1, 2, 0, 3, 4)
    mask = np.tri(5, dtype=bool) if config.causal else None
    for layer in range(layers):
        q = rng.normal(size=(2, 5, config.num_attention_heads, size))
        k, v = rng.normal(size=(2, 2, 5, heads, size))
        g = rng.normal(size=q.shape)
        own = prefix().layers[layer]
        ours = F.attention(Tensor(q), Tensor(k), Tensor(v), causal=config.causal, prefix=own)
        np.testing.assert_allclose(
            ours.data, reference.forward(layer, q, k, v, mask), rtol=1e-10, atol=1e-12
        )
        ours.backward(g)
        reference.backward(layer, g)
    grad = prefix.prompt_embeddings.grad
    assert grad is not None
    expected = reference.prefix_grad.transpose(2, 0, 1, 3, 4).reshape(grad.shape)
    np.testing.assert_allclose(grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_texts_keys_and_values_as_a_prefix_equal_the_text(config: TransformerConfig) -> None:
    model = small(config, np.float64)
    cache = [LayerCache(4) for _ in range(config.num_hidden_layers)]
    with no_grad():
        model(TEXT, cache=cache)
        together = model(np.concatenate([np.repeat(TEXT, 2, axis=0), IDS], axis=1)).data
        empty = Tensor(np.zeros((1, 0, config.num_key_value_heads, config.head_dim)))
        stored = [[t.data[0] for t in layer.extend(empty, empty)] for layer in cache]
    matrix = np.array(stored).transpose(2, 0, 1, 3, 4).reshape(4, -1)  # (P, L · 2 · K · D)
    peft = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=4))
    (parameter,) = peft.trainable_parameters()
    parameter.data = matrix
    np.testing.assert_allclose(logits(peft), together[:, 4:], rtol=1e-10, atol=1e-12)


def test_the_projection_matches_the_reference(rng: np.random.Generator) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5)
    prefix = projected(config)
    reference = Reparameterization(3, [8, 5, 48], "tanh")
    reference.embedding = prefix.embedding.data
    layers = (prefix.up_proj, prefix.down_proj)
    for linear in layers:
        assert linear.bias is not None
        linear.bias.data = rng.normal(size=linear.bias.shape)
    reference.weights = [linear.weight.data for linear in layers]
    reference.biases = [linear.bias.data for linear in layers if linear.bias is not None]
    matrix = prefix.matrix()
    np.testing.assert_allclose(matrix.data, reference.forward(), rtol=1e-12, atol=1e-14)
    g = rng.normal(size=matrix.shape)
    matrix.backward(g)
    reference.backward(g)
    expected = {
        "embedding": reference.embedding_grad,
        "up_proj.weight": reference.weight_grads[0],
        "up_proj.bias": reference.bias_grads[0],
        "down_proj.weight": reference.weight_grads[1],
        "down_proj.bias": reference.bias_grads[1],
    }
    found = {name: p.grad for name, p in prefix.named_parameters()}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert grad is not None
        np.testing.assert_allclose(grad, expected[name], rtol=1e-10, atol=1e-12)


# ---------- where it starts ----------


def test_virtual_tokens_start_small_and_different() -> None:
    peft = get_peft_model(small(LLAMA), PrefixTuningConfig(num_virtual_tokens=20))
    (matrix,) = (p.data for p in peft.trainable_parameters())
    assert matrix.shape == (20, 2 * 3 * 2 * 4)
    assert matrix.std() == pytest.approx(0.02, rel=0.1)
    assert len({row.tobytes() for row in matrix}) == 20


@pytest.mark.parametrize("projection", [False, True])
def test_zero_initialisation_is_zero(projection: bool) -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=projection, init_weights="zero"
    )
    peft = get_peft_model(small(LLAMA), config)
    virtual = peft.base_model.prefix()
    assert virtual is not None
    for keys, values in virtual.layers:
        assert not keys.data.any()
        assert not values.data.any()


def step_down(peft: PeftModel) -> Array:
    """Return the prefix (P, 2·L·K·D) after one step of gradient descent."""
    peft.loss(IDS, IDS).backward()
    for parameter in peft.trainable_parameters():
        assert parameter.grad is not None
        parameter.data = parameter.data - 0.1 * parameter.grad
    (matrix,) = peft.record.stored_parameters(0).values()
    return matrix.data


def test_equal_virtual_tokens_stay_equal_without_a_projection() -> None:
    zero = PrefixTuningConfig(num_virtual_tokens=3, init_weights="zero")
    alike = step_down(get_peft_model(small(LLAMA), zero))
    assert alike.any()
    np.testing.assert_allclose(alike[1:], alike[:-1], atol=1e-7)
    unlike = step_down(get_peft_model(small(LLAMA), replace(zero, prefix_projection=True)))
    assert np.abs(unlike[1:] - unlike[:-1]).max() > 1e-4


# ---------- flattened ----------


def test_flattening_keeps_the_prefix() -> None:
    config = PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True)
    prefix = projected(config)
    twin = prefix.flattened()
    assert [name for name, _ in twin.named_parameters()] == ["prompt_embeddings"]
    assert twin.prompt_embeddings.requires_grad
    for ours, theirs in zip(prefix().layers, twin().layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    twin.prompt_embeddings.data += 1  # a copy
    assert np.abs(prefix.matrix().data - twin.prompt_embeddings.data).min() > 0.5


def test_it_is_stored_under_pefts_name_without_a_path() -> None:
    peft = get_peft_model(small(LLAMA), PrefixTuningConfig(num_virtual_tokens=3))
    assert {n: a.shape for n, a in trained(peft).items()} == {"prompt_embeddings": (3, 48)}


# ---------- counting ----------


@pytest.mark.parametrize(
    ("shape", "settings", "count"),
    [
        ("gpt2", {}, 368_640),
        ("gpt2", {"prefix_projection": True}, 14_780_160),
        ("llama-7b", {"num_virtual_tokens": 10}, 2_621_440),
    ],
)
def test_counts_match_published_ones(shape: str, settings: dict[str, bool], count: int) -> None:
    config = PrefixTuningConfig(**settings)  # type: ignore[arg-type]
    assert count_recipe(named_shape(shape), config, Host.installed())[0] == count


# ---------- settings ----------


def test_the_command_line_takes_its_settings() -> None:
    text = "prefix_tuning:num_virtual_tokens=5,prefix_projection=true,init_weights=zero"
    assert parse_method(text, Host.installed()) == PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, init_weights="zero"
    )


def test_one_error_lists_every_invalid_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        PrefixTuningConfig(num_virtual_tokens=0, encoder_hidden_size=0, init_weights="one")  # type: ignore[arg-type]
    for said in (
        "num_virtual_tokens: expected at least 1, got 0",
        "encoder_hidden_size=0 must be at least 1",
        "init_weights: expected one of zero, got 'one'",
    ):
        assert said in str(caught.value)
