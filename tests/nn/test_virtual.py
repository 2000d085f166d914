from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.peft.small import BERT_CLASSIFIER, FAMILIES, GPT2, IDS, LLAMA, small
from tinygrad_peft.arrays import BoolArray
from tinygrad_peft.errors import TokenError
from tinygrad_peft.nn import Module, Transformer, TransformerConfig, VirtualKeys, VirtualTokens
from tinygrad_peft.tensor import Tensor, no_grad


def normal(*shape: int, seed: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(0, 0.5, shape))


class Soft(Module):
    """Prompts of some lengths, one for each row, or one for all."""

    def __init__(self, config: TransformerConfig, *lengths: int) -> None:
        longest, width = max(lengths), config.hidden_size
        states = [normal(n, width, seed=n).data for n in lengths]
        rows = [np.pad(s, ((longest - len(s), 0), (0, 0))) for s in states]
        self.states = Tensor(np.stack(rows)) if len(lengths) > 1 else Tensor(states[0])
        self.present = present(lengths)

    def __call__(self) -> VirtualTokens:
        return VirtualTokens(self.states, self.present)


class Keys(Module):
    """Prefixes of some lengths, one for each row, or one for all."""

    def __init__(self, config: TransformerConfig, *lengths: int) -> None:
        longest, self.layers = max(lengths), []
        for layer in range(config.num_hidden_layers):
            pair = []
            for kind in range(2):
                shape = (config.num_key_value_heads, config.head_dim)
                own = [normal(n, *shape, seed=10 * layer + kind + 100 * n).data for n in lengths]
                rows = [np.pad(s, ((longest - len(s), 0), (0, 0), (0, 0))) for s in own]
                pair.append(Tensor(np.stack(rows) if len(lengths) > 1 else own[0]))
            self.layers.append((pair[0], pair[1]))
        self.present = present(lengths)

    def __call__(self) -> VirtualKeys:
        return VirtualKeys(self.layers, self.present)


def present(lengths: Sequence[int]) -> BoolArray | None:
    if len(lengths) == 1:
        return None
    return np.asarray(np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None])


def made(config: TransformerConfig, prompt: Sequence[int], prefix: Sequence[int]) -> Transformer:
    model = small(config, np.float64)
    if any(prompt):
        model.prompt = Soft(config, *prompt)
    if any(prefix):
        model.prefix = Keys(config, *prefix)
    return model


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> TransformerConfig:
    return FAMILIES[request.param]


LENGTHS = [((3, 1), (2, 2)), ((2, 0), (0, 3)), ((1, 4), (0, 0)), ((0, 0), (3, 1))]


@pytest.mark.parametrize(("prompt", "prefix"), LENGTHS)
def test_rows_with_their_own_fronts_equal_each_row_alone(
    config: TransformerConfig, prompt: tuple[int, int], prefix: tuple[int, int]
) -> None:
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with no_grad():
        together = made(config, prompt, prefix)(IDS, mask).data
        for row in range(2):
            alone = made(config, prompt[row : row + 1], prefix[row : row + 1])
            expected = alone(IDS[row : row + 1], mask[row : row + 1]).data[0]
            found = together[row] if expected.ndim == 1 else together[row, -len(expected) :]
            seen = slice(None) if expected.ndim == 1 else slice(0, len(expected) - 2 * row)
            np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("prompt", "prefix"), LENGTHS)
def test_the_loss_of_rows_with_their_own_fronts_equals_the_loss_of_each_alone(
    prompt: tuple[int, int], prefix: tuple[int, int]
) -> None:
    labels = IDS.copy()
    labels[0, 2] = -100
    together = made(GPT2, prompt, prefix).loss(IDS, labels).item()
    total, counted = 0.0, 0
    for row in range(2):
        alone = made(GPT2, prompt[row : row + 1], prefix[row : row + 1])
        one = slice(row, row + 1)
        first = 0 if prompt[row] else 1
        number = int((labels[one, first:] != -100).sum())
        total += alone.loss(IDS[one], labels[one]).item() * number
        counted += number
    assert together == pytest.approx(total / counted, rel=1e-10)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("prompt", "prefix"), [((3,), (2,)), ((3,), ()), ((), (2,)), *LENGTHS])
def test_generation_with_a_cache_equals_generation_without(
    config: TransformerConfig, prompt: tuple[int, ...], prefix: tuple[int, ...]
) -> None:
    model = made(config, prompt, prefix)
    ids = IDS
    with no_grad():
        for _ in range(6):
            ids = np.concatenate([ids, model(ids).data[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(model.generate(IDS, max_new_tokens=6), ids)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_padded_texts_are_continued_behind_a_front_as_they_are_alone(
    config: TransformerConfig,
) -> None:
    model = made(config, (3,), (2,))
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    both = model.generate(IDS, max_new_tokens=5, attention_mask=mask)
    alone = model.generate(IDS[1:, 2:], max_new_tokens=5)
    np.testing.assert_array_equal(both[1, 2:], alone[0])


def test_a_prefix_shifts_the_positions_and_gives_no_logits_of_its_own() -> None:
    model = made(LLAMA, (), (4,))
    with no_grad():
        assert model(IDS).shape == (2, 5, 50)
        moved = small(LLAMA, np.float64)(IDS, positions=np.arange(4, 9)).data
    assert not np.allclose(model(IDS).data, moved)  # the prefix is looked at


def test_a_prompt_gives_logits_of_its_own() -> None:
    assert made(LLAMA, (4,), ())(IDS).shape == (2, 9, 50)
    assert made(BERT_CLASSIFIER, (4,), ())(IDS).shape == (2, 3)


@pytest.mark.parametrize(("prompt", "prefix"), [((20,), ()), ((), (20,)), ((12,), (8,))])
def test_virtual_tokens_count_against_the_positions(
    config: TransformerConfig, prompt: tuple[int, ...], prefix: tuple[int, ...]
) -> None:
    model = made(config, prompt, prefix)
    assert model.num_virtual_tokens == 20
    model(IDS[:, :4])
    with pytest.raises(TokenError, match=r"25 tokens \(20 of them virtual\) .* 24 positions"):
        model(IDS)


def test_generation_beyond_the_positions_is_refused_before_it_starts() -> None:
    told: list[object] = []
    model = made(GPT2, (10,), (5,))
    with pytest.raises(TokenError, match="15 virtual tokens, a prompt of 5 tokens and 5 new ones"):
        model.generate(IDS, max_new_tokens=5, on_token=told.append)
    assert not told
    model.generate(IDS, max_new_tokens=4)


def test_gradients_reach_every_virtual_token() -> None:
    model = made(LLAMA, (3,), (2,))
    model.freeze()
    assert isinstance(model.prompt, Soft)
    assert isinstance(model.prefix, Keys)
    model.prompt.states = Tensor(model.prompt.states.data, requires_grad=True)
    model.prefix.layers = [
        (Tensor(k.data, requires_grad=True), Tensor(v.data, requires_grad=True))
        for k, v in model.prefix.layers
    ]
    model.loss(IDS, IDS).backward()
    for tensor in (model.prompt.states, *(t for pair in model.prefix.layers for t in pair)):
        assert tensor.grad is not None
        assert np.abs(tensor.grad).reshape(tensor.shape[0], -1).max(axis=1).all()


@pytest.mark.parametrize("front", [3, 1])
def test_shared_vectors_come_before_the_rows_own(front: int) -> None:
    def with_more(lengths: Sequence[int]) -> Transformer:
        model = made(LLAMA, (), ())
        more = normal(front, LLAMA.hidden_size, seed=50)
        pairs = Keys(LLAMA, front).layers
        model.prompt = Behind(lambda: Soft(LLAMA, *lengths)().behind(more))
        model.prefix = Behind(lambda: Keys(LLAMA, *lengths)().behind(pairs))
        return model

    lengths = (2, 4)
    with no_grad():
        together = with_more(lengths)(IDS).data
        for row, length in enumerate(lengths):
            alone = with_more((length,))
            assert alone.num_virtual_tokens == 2 * (front + length)
            expected = alone(IDS[row : row + 1]).data[0]
            found = together[row, -len(expected) :]
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


class Behind(Module):
    def __init__(self, made: Callable[[], Any]) -> None:
        self.made = made

    def __call__(self) -> Any:  # noqa: ANN401 - a prompt or a prefix
        return self.made()
