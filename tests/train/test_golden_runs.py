"""Short runs in float64, held to the figures of the first version of the loop."""

import numpy as np
import pytest

from tests.train.toys import classifier, countings, language_model, needles
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftModel, get_peft_model
from tinygrad_peft.train import TrainConfig, TrainResult, train
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prompt import PromptTuningConfig


def fingerprint(model: Transformer | PeftModel) -> float:
    """Sum all weights, each times a number of its own."""
    flat = np.concatenate([p.data.ravel() for p in model.parameters()])
    return float(flat @ np.cos(np.arange(flat.size)))


def assert_figures(
    model: Transformer | PeftModel,
    result: TrainResult,
    *,
    losses: list[float],
    evaluations: list[float],
    weights: float,
) -> None:
    assert result.losses == pytest.approx(losses, rel=1e-9)
    assert [e.loss for e in result.evaluations] == pytest.approx(evaluations, rel=1e-9)
    assert fingerprint(model) == pytest.approx(weights, rel=1e-7)


def test_a_classifier_with_dropout_accumulation_and_smoothing() -> None:
    model = classifier(dropout=0.3, dtype=np.float64)
    config = TrainConfig(
        batch_size=4, epochs=2, lr=1e-2, accumulation=2, eval_every=2, label_smoothing=0.1
    )
    result = train(model, needles(24), needles(8, seed=1), config)
    assert_figures(
        model,
        result,
        losses=[
            0.8547301716704355,
            0.7053070105954464,
            1.0280249306020581,
            0.7842267429779645,
            0.6394588767491786,
            0.5967941448202249,
        ],
        evaluations=[1.1427504306668643, 0.7176198863694476, 0.6750322849987811],
        weights=-6.155438245017711,
    )


def test_an_adapted_language_model_with_two_rates() -> None:
    recipe = [
        LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.2),
        PromptTuningConfig(num_virtual_tokens=2),
    ]
    peft = get_peft_model(language_model(dtype=np.float64), recipe, seed=3)
    config = TrainConfig(batch_size=8, epochs=2, schedule="cosine", weight_decay=0.1)
    result = train(peft, countings(24), countings(8, seed=1), config)
    assert_figures(
        peft,
        result,
        losses=[
            2.4698408876583593,
            2.46262453155233,
            2.4860189480686214,
            2.462566916788,
            2.4708668007967636,
            2.46348604511772,
        ],
        evaluations=[2.4638991710841176, 2.4634281198879786],
        weights=-0.03661142701733988,
    )


def test_a_language_model_by_sgd() -> None:
    model = language_model(dtype=np.float64)
    config = TrainConfig(batch_size=5, optimizer="sgd", lr=0.3)
    result = train(model, countings(24), None, config)
    assert_figures(
        model,
        result,
        losses=[
            2.476982315542305,
            2.4827912143053372,
            2.333084403972759,
            2.2448260961925977,
            2.275807110190479,
        ],
        evaluations=[],
        weights=-3.2928203864834176,
    )
