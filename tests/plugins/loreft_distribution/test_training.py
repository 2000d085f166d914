"""A model that counts up by one learns from LoReFT to skip a number after each prompt."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tinygrad_peft import PeftModel, Transformer, get_peft_model
from tinygrad_peft.testing import SMALL_MODELS, small_model
from tinygrad_peft.train import Encoded, EncodedData, TrainConfig, evaluate, train
from tinygrad_peft_loreft import LoreftConfig

NUMBERS = 11  # the tokens 1 to 11, round and round


def counted(start: int, length: int) -> tuple[int, ...]:
    return tuple((start - 1 + i) % NUMBERS + 1 for i in range(length))


def prompts(count: int, *, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [counted(int(rng.integers(1, 12)), int(rng.integers(2, 8))) for _ in range(count)]


def texts(count: int, *, seed: int) -> EncodedData:
    """Prompts that go on counting."""
    found = [counted(prompt[0], 9) for prompt in prompts(count, seed=seed)]
    return EncodedData([Encoded(ids, ids) for ids in found])


def answers(count: int, *, seed: int, step: int = 2) -> EncodedData:
    """Prompts with one token after each, `step` further than the last."""
    examples = []
    for prompt in prompts(count, seed=seed):
        answer = counted(prompt[-1] + step, 1)
        examples.append(Encoded(prompt + answer, (-100,) * len(prompt) + answer))
    return EncodedData(examples)


@cache
def trained_base() -> Transformer:
    model = small_model(SMALL_MODELS["llama"])
    train(model, texts(200, seed=0), None, TrainConfig(epochs=8, batch_size=16, lr=1e-2))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("share_weights", [True, False])
def test_the_answer_is_learnt_and_the_base_still_counts(
    *, share_weights: bool, tmp_path: Path
) -> None:
    model, held_out = copy.deepcopy(trained_base()), answers(100, seed=1)
    assert evaluate(model, answers(100, seed=1, step=1), batch_size=50).loss < 0.3
    before = evaluate(model, held_out, batch_size=50).loss
    config = LoreftConfig(low_rank_dimension=8, share_weights=share_weights)
    peft = get_peft_model(model, config)
    # At the method's own learning rate.
    train(peft, answers(200, seed=2), None, TrainConfig(epochs=10, batch_size=16))
    after = evaluate(peft, held_out, batch_size=50).loss
    assert before > 3
    assert after < 0.4
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(trained_base()), tmp_path)
    assert evaluate(loaded, held_out, batch_size=50).loss == after
    # The prompt alone is edited: after the answer the base goes on counting by one.
    generated = peft.generate(np.array([[4, 5, 6]]), max_new_tokens=3)
    np.testing.assert_array_equal(generated, [[4, 5, 6, 8, 9, 10]])
    with peft.disable_adapter():
        generated = peft.generate(np.array([[4, 5, 6]]), max_new_tokens=3)
    np.testing.assert_array_equal(generated, [[4, 5, 6, 7, 8, 9]])
