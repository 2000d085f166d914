"""LoReFT held to what all methods promise, with one intervention for both ends or one for each."""

from dataclasses import replace
from typing import ClassVar

from tinygrad_peft.testing import SMALL_MODELS, MethodConformance
from tinygrad_peft_loreft import LoreftConfig


class TestLoreft(MethodConformance):
    config = LoreftConfig(low_rank_dimension=3, first_n=2, last_n=1, dropout=0.1)
    configs: ClassVar = {"bert": replace(config, layers=0)}  # where prompts may stand in front
    starts_as_identity = False  # R and W are drawn apart from each other, as in the paper
    mergeable = False


class TestLoreftFromTheIdentity(MethodConformance):
    config = LoreftConfig(layers=[1], init_weights="identity")
    mergeable = False
    composes_with = ()


class TestLoreftWithWeightsForEachEnd(MethodConformance):
    """On BERT: a language model's prompts in the suite's loss have one token, and so one end."""

    config = LoreftConfig(first_n=1, last_n=2, share_weights=False, layers=0, act_fn="tanh")
    models: ClassVar = {"bert": SMALL_MODELS["bert"]}
    starts_as_identity = False
    mergeable = False
    composes_with = ()
