"""Every built-in method passes the conformance suite."""

from typing import ClassVar

import pytest

from tinygrad_peft.testing import SMALL_MODELS, Case, MethodConformance
from tinygrad_peft_adalora import AdaLoraConfig
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig
from tinygrad_peft_qlora import QLoraConfig, QuantizeConfig
from tinygrad_peft_vera import VeraConfig

BERT = {"bert": SMALL_MODELS["bert"]}
UNTIED = {family: SMALL_MODELS[family] for family in ("llama", "bert")}


class TestLora(MethodConformance):
    config = LoraConfig()


class TestAdaLora(MethodConformance):
    config = AdaLoraConfig()


class TestAdapter(MethodConformance):
    config = BottleneckAdapterConfig()
    mergeable = False


class TestIA3(MethodConformance):
    config = IA3Config()


class TestPrefixTuning(MethodConformance):
    config = PrefixTuningConfig(num_virtual_tokens=3)
    starts_as_identity = False
    mergeable = False


class TestPromptTuning(MethodConformance):
    config = PromptTuningConfig(num_virtual_tokens=3)
    starts_as_identity = False
    mergeable = False
    changes_sequence_length = True


class TestQuantize(MethodConformance):
    config = QuantizeConfig()
    starts_as_identity = False
    trains = False
    composes_with_itself = False


class TestQLora(MethodConformance):
    config = QLoraConfig()
    starts_as_identity = False
    composes_with_itself = False


# ---------- other settings of the same methods, which compose with themselves alone ----------


class Variant(MethodConformance):
    composes_with: ClassVar[tuple[str, ...]] = ()


class TestLoraOnAllLinearLayers(Variant):
    config = LoraConfig(target_modules="all-linear", use_rslora=True, lora_dropout=0.1)


class TestLoraThatStartsElsewhere(Variant):
    config = LoraConfig(init_lora_weights=False, rank_pattern={r".*\.0\..*": 3})
    starts_as_identity = False


class TestLoraWithABiasOfB(Variant):
    config = LoraConfig(lora_bias=True)
    models: ClassVar = {family: SMALL_MODELS[family] for family in ("gpt2", "bert")}  # with biases


class Dora(MethodConformance):
    @pytest.mark.parametrize("mode", ["evaluation", "training"])
    def test_gradients_agree_with_differences(self, case: Case, mode: str) -> None:
        pytest.skip(f"not promised: {case} takes its norms for constants, in {mode} too")


class TestDora(Dora):
    config = LoraConfig(use_dora=True, init_lora_weights="gaussian")


class TestPissa(MethodConformance):
    config = LoraConfig(r=2, init_lora_weights="pissa")
    starts_as_identity = False  # up to rounding


class TestOlora(Variant):
    config = LoraConfig(r=3, init_lora_weights="olora", use_rslora=True)
    starts_as_identity = False


class TestLoraThatStartsOrthogonal(Variant):
    config = LoraConfig(init_lora_weights="orthogonal")
    starts_as_identity = False


class TestLoraOnAnEmbedding(Variant):
    config = LoraConfig(target_modules=["embed_tokens", "q_proj"])
    configs: ClassVar = {"bert": LoraConfig(target_modules=["word_embeddings", "query"])}
    models = UNTIED


class TestDoraOnAnEmbedding(Dora, Variant):
    config = LoraConfig(target_modules=["embed_tokens", "q_proj"], use_dora=True)
    configs: ClassVar = {
        "bert": LoraConfig(target_modules=["word_embeddings", "query"], use_dora=True)
    }
    models = UNTIED


class TestLoraWithTrainedTokens(Variant):
    config = LoraConfig(trainable_token_indices=[3, 1, 7])
    starts_as_identity = False  # up to rounding, where the output layer is tied
    composes_with_itself = False


class TestLoraWithBiases(Variant):
    config = LoraConfig(bias="lora_only")
    models = BERT
    composes_with_itself = False


class TestLoraWithItsHead(Variant):
    config = LoraConfig(modules_to_save=["classifier"])
    models = BERT
    composes_with_itself = False


class TestAdaLoraThatIsPruned(Variant):
    config = AdaLoraConfig(
        init_r=3,
        target_r=2,
        init_lora_weights=False,
        lora_dropout=0.1,
        rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": (True, False, True)},
    )
    models: ClassVar = {"llama": SMALL_MODELS["llama"]}
    starts_as_identity = False


class TestAdaLoraWithBiases(Variant):
    config = AdaLoraConfig(init_r=3, target_r=2, bias="lora_only")
    models = BERT
    composes_with_itself = False


class TestHoulsbyAdapter(Variant):
    config = BottleneckAdapterConfig(
        placement="houlsby", reduction_factor=4, activation="gelu", layer_norm=True, dropout=0.1
    )
    mergeable = False


class TestAdapterOfTheHiddenStates(Variant):
    config = BottleneckAdapterConfig(placement="houlsby", reads="residual", drops="output")
    mergeable = False


class TestParallelAdapter(Variant):
    config = BottleneckAdapterConfig(placement="parallel", bias=False, init_weights="near_identity")
    starts_as_identity = False
    mergeable = False


class TestIA3OnAllLinearLayers(Variant):
    config = IA3Config(target_modules="all-linear", init_ia3_weights=False)
    starts_as_identity = False


class TestPrefixOutOfAProjection(Variant):
    config = PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True)
    starts_as_identity = False
    mergeable = False


class TestPromptFromTheVocabulary(Variant):
    config = PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="SAMPLE_VOCAB")
    starts_as_identity = False
    mergeable = False
    changes_sequence_length = True


class TestPTuning(Variant):
    config = PromptEncoderConfig(num_virtual_tokens=2)
    starts_as_identity = False
    mergeable = False
    changes_sequence_length = True


class TestInt4(Variant):
    config = QuantizeConfig(quant_type="int4", block_size=32)
    starts_as_identity = False
    trains = False
    composes_with_itself = False


class TestDoubleQuantization(Variant):
    config = QuantizeConfig(double_quant=True)
    starts_as_identity = False
    trains = False
    composes_with_itself = False


class TestLNTuning(Variant):
    config = LNTuningConfig()
    composes_with_itself = False
    composes_with = ("vera",)  # the other methods' own classes compose with both


class TestVera(Variant):
    config = VeraConfig(r=8)


class TestVeraWithoutItsProjection(Variant):
    config = VeraConfig(
        r=3, target_modules="all-linear", save_projection=False, vera_dropout=0.1, d_initial=0.5
    )


class TestVeraWithBiases(Variant):
    config = VeraConfig(r=3, bias="all")
    models = BERT
    composes_with_itself = False
