"""The facts that two runs must share."""

import dataclasses

import numpy as np
import pytest

from tests.train.toys import adapted, classifier, countings, needles
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft.train.fingerprint import differences, frozen_weights, run_facts
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QuantizeConfig

CONFIG = TrainConfig()
LORA = LoraConfig(r=2, target_modules=["q_proj"])


def facts(data: EncodedData, config: TrainConfig = CONFIG) -> dict[str, object]:
    return run_facts(classifier(), data, None, config)


def test_equal_runs_have_equal_facts() -> None:
    one = run_facts(adapted(), needles(8), needles(4), CONFIG)
    assert differences(one, run_facts(adapted(), needles(8), needles(4), CONFIG)) == []


def test_settings_of_checkpoints_make_no_difference() -> None:
    other = dataclasses.replace(CONFIG, save_every=3, save_minutes=1.0, keep=9)
    assert differences(facts(needles(8)), facts(needles(8), other)) == []


@pytest.mark.parametrize(
    "other",
    [
        [Encoded((1, 2), 0), Encoded((3,), 0)],
        [Encoded((3,), 1), Encoded((1, 2), 0)],
        [Encoded((1,), 0), Encoded((2, 3), 1)],
        [Encoded((1, 2), 0)],
        [Encoded((1, 2), (0, 1)), Encoded((3,), (1,))],
    ],
    ids=["label", "order", "split", "count", "labels of tokens"],
)
def test_other_examples_are_a_difference(other: list[Encoded]) -> None:
    one = facts(EncodedData([Encoded((1, 2), 0), Encoded((3,), 1)]))
    told = ["training examples: expected those of the run, got others"]
    assert differences(one, facts(EncodedData(other))) == told


def test_another_padding_token_is_a_difference() -> None:
    rows = [Encoded((1, 2), 0), Encoded((3,), 1)]
    (told,) = differences(facts(EncodedData(rows)), facts(EncodedData(rows, pad_id=3)))
    assert told == "training examples: expected those of the run, got others"


def test_examples_that_one_run_does_not_have_are_a_difference() -> None:
    tried = run_facts(classifier(), needles(8), needles(4), CONFIG)
    (told,) = differences(tried, facts(needles(8)))
    assert told.startswith("evaluation examples: expected '")
    assert told.endswith("', as the run has, got None")


def test_steps_settings_and_models_are_compared_one_by_one() -> None:
    model = get_peft_model(classifier(), [LoraConfig(r=2, target_modules=["q_proj"])])
    other = get_peft_model(
        classifier(dropout=0.5),
        [LoraConfig(r=2, target_modules=["v_proj"]), LoraConfig(target_modules=["k_proj"])],
    )
    one = run_facts(model, needles(8), None, CONFIG)
    told = differences(one, run_facts(other, needles(8), None, TrainConfig(epochs=4)))
    assert told[:2] == [
        "settings: epochs: expected 1, as the run has, got 4",
        "recipe: step 1: target_modules: expected ['q_proj'], as the run has, got ['v_proj']",
    ]
    assert "model: hidden_dropout: expected 0.0, as the run has, got 0.5" in told
    assert "recipe: step 2: r: expected nothing, as the run has, got 8" in told


def test_a_setting_named_after_weights_is_listed_with_its_values() -> None:
    one, other = (
        {"recipe": [{"init_lora_weights": start}], "frozen weights": start}
        for start in ("gaussian", "olora")
    )
    assert differences(one, other) == [
        "recipe: step 1: init_lora_weights: expected 'gaussian', as the run has, got 'olora'",
        "frozen weights: expected those of the run, got others",
    ]


def test_the_digest_is_of_the_weights_that_are_not_trained() -> None:
    peft = adapted()
    before = frozen_weights(peft)
    assert before == frozen_weights(adapted())
    peft.trainable_parameters()[0].data[...] += 1
    assert before == frozen_weights(peft)
    next(p for p in peft.parameters() if not p.requires_grad).data.flat[-1] += 1
    assert before != frozen_weights(peft)


def test_the_digest_covers_4_bit_weights() -> None:
    def digest(change: float) -> str:
        model = classifier()
        weights = dict(model.named_parameters())
        weights["blocks.0.attn.q_proj.weight"].data[0, 0] += np.float32(change)
        peft = get_peft_model(model, [QuantizeConfig(target_modules=["q_proj"]), LORA])
        assert "blocks.0.attn.q_proj.weight" not in dict(peft.named_parameters())
        return frozen_weights(peft)

    assert digest(0) == digest(0) != digest(5)


def test_a_language_model_s_labels_are_part_of_its_data() -> None:
    data = countings(3)
    others = EncodedData([Encoded(row.input_ids, row.input_ids[::-1]) for row in data])
    assert facts(data)["training examples"] != facts(others)["training examples"]
