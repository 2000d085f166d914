"""Every method keeps its promises: the built-in ones as any other does."""

from typing import ClassVar

from tinygrad_peft.testing import SMALL_MODELS, MethodConformance
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig
from tinygrad_peft_qlora import QLoraConfig, QuantizeConfig

BERT = {"bert": SMALL_MODELS["bert"]}


class TestLora(MethodConformance):
    config = LoraConfig()


class TestAdapter(MethodConformance):
    config = BottleneckAdapterConfig()
    mergeable = False


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


class TestLoraWithBiases(Variant):
    config = LoraConfig(bias="lora_only")
    models = BERT
    composes_with_itself = False


class TestLoraWithItsHead(Variant):
    config = LoraConfig(modules_to_save=["classifier"])
    models = BERT
    composes_with_itself = False


class TestHoulsbyAdapter(Variant):
    config = BottleneckAdapterConfig(
        placement="houlsby", reduction_factor=4, activation="gelu", layer_norm=True, dropout=0.1
    )
    mergeable = False


class TestParallelAdapter(Variant):
    config = BottleneckAdapterConfig(placement="parallel", bias=False, init_weights="near_identity")
    starts_as_identity = False
    mergeable = False


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
