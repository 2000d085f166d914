import time
import tracemalloc
from dataclasses import replace

import pytest

import tinygrad_peft_bitfit
from tests.peft.small import (
    BERT,
    BERT_CLASSIFIER,
    FAMILIES,
    ShiftConfig,
    lora_host,
    plugin,
    shift,
    small,
)
from tinygrad_peft.errors import PeftError, PluginError, TargetError
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import (
    Host,
    NamedTargetsConfig,
    PeftConfig,
    count_recipe,
    get_peft_model,
)
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_qlora import QuantizeConfig
from tinygrad_peft_vera import VeraConfig

LLAMA_7B = TransformerConfig(
    model_type="llama",
    vocab_size=32_000,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    intermediate_size=11_008,
    max_position_embeddings=2048,
    norm="rms_norm",
    positions="rotary",
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
)
LLAMA_70B = replace(
    LLAMA_7B,
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=28_672,
)
GPT2_SMALL = TransformerConfig(
    model_type="gpt2",
    vocab_size=50_257,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=1024,
    packed_qkv=True,
)
ROBERTA_BASE = replace(
    BERT,
    vocab_size=50_265,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    intermediate_size=3072,
    max_position_embeddings=514,
    type_vocab_size=1,
)

OPTIONS = {
    "usual targets": [LoraConfig(r=3)],
    "all-linear": [LoraConfig(r=2, target_modules="all-linear")],
    "a regular expression": [LoraConfig(r=2, target_modules=r".*\.(0|1)\..*(proj|attn|query)")],
    "one layer": [LoraConfig(r=2, layers_to_transform=1)],
    "exclusions": [LoraConfig(target_modules="all-linear", exclude_modules=r".*\.1\..*")],
    "ranks by pattern": [LoraConfig(r=4, rank_pattern={r"1\..*": 2, r"[qv].*|c_attn": 3})],
    "biases of targets": [LoraConfig(r=2, target_modules="all-linear", bias="lora_only")],
    "all biases": [LoraConfig(r=2, bias="all")],
    "rslora": [LoraConfig(r=2, use_rslora=True, lora_alpha=1)],
    "dora": [LoraConfig(r=2, use_dora=True, target_modules="all-linear")],
    "a bias of B": [LoraConfig(r=2, lora_bias=True, target_modules="all-linear", bias="all")],
    "taken out": [LoraConfig(r=2, init_lora_weights="pissa", rank_pattern={".*": 3})],
    "tokens": [LoraConfig(r=2, trainable_token_indices=[3, 1, 7])],
    "two steps": [LoraConfig(r=2), LoraConfig(r=3, target_modules="all-linear")],
}
FINAL_NORM = {"gpt2": "ln_f", "llama": "norm", "bert": "classifier"}


def lora_and_bitfit() -> Host:
    host = lora_host()
    host.register(tinygrad_peft_bitfit, "bitfit")
    return host


def assert_counts_as_it_is(config: TransformerConfig, recipe: list[PeftConfig]) -> None:
    host = lora_and_bitfit()
    real = get_peft_model(small(config), recipe, host=host).get_nb_trainable_parameters()
    assert count_recipe(config, recipe, host) == real


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_closed_form_is_the_real_count(family: str, option: str) -> None:
    assert_counts_as_it_is(FAMILIES[family], [*OPTIONS[option]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["usual targets", "all-linear", "all biases"])
def test_saved_modules_are_counted_once(family: str, option: str) -> None:
    (config,) = OPTIONS[option]
    saving = replace(config, modules_to_save=[FINAL_NORM[family]])
    assert_counts_as_it_is(FAMILIES[family], [saving])


def test_a_third_partys_method_counts_as_well() -> None:
    bitfit = tinygrad_peft_bitfit.BitFitConfig(target_modules="all-linear")
    for family in FAMILIES.values():
        assert_counts_as_it_is(family, [bitfit])
        assert_counts_as_it_is(family, [LoraConfig(r=2), bitfit, LoraConfig(r=1)])


def test_a_saved_head_is_counted_with_as_many_labels_as_it_has() -> None:
    for labels in (1, 7):
        config = replace(BERT_CLASSIFIER, num_labels=labels)
        assert_counts_as_it_is(config, [LoraConfig(modules_to_save=["classifier"])])


@pytest.mark.parametrize(
    ("shape", "targets", "trainable"),
    [
        (LLAMA_7B, ["q_proj", "v_proj"], 4_194_304),
        (GPT2_SMALL, ["c_attn"], 294_912),
        (ROBERTA_BASE, ["query", "value"], 294_912),
    ],
)
def test_published_counts_come_out(
    shape: TransformerConfig, targets: list[str], trainable: int
) -> None:
    config = LoraConfig(r=8, target_modules=targets)
    assert count_recipe(shape, [config], lora_host())[0] == trainable


def test_the_totals_are_those_of_the_models() -> None:
    totals = {
        "Llama-7B": (LLAMA_7B, 6_738_415_616),
        "Llama-70B": (LLAMA_70B, 68_976_648_192),
        "GPT-2": (GPT2_SMALL, 124_439_808),
    }
    for shape, base in totals.values():
        trainable, total = count_recipe(shape, [LoraConfig(r=8)], lora_host())
        assert total - trainable == base


def test_a_model_of_seventy_billion_takes_no_memory_and_little_time() -> None:
    recipe = [LoraConfig(r=64, target_modules="all-linear"), LoraConfig(r=8)]
    tracemalloc.start()
    try:
        start = time.process_time()
        trainable, total = count_recipe(LLAMA_70B, recipe, lora_host())
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert trainable > 8e8
    assert total > 69e9
    assert peak < 50e6
    assert seconds < 10


# ---------- what is refused ----------


def test_targets_that_are_not_there_are_an_error_as_they_are_when_applied() -> None:
    recipe = [LoraConfig(target_modules=["q_porj"]), LoraConfig(modules_to_save=["x"])]
    with pytest.raises(TargetError, match="did you mean 'q_proj'") as caught:
        count_recipe(LLAMA_7B, recipe, lora_host())
    assert "step 1: modules_to_save: 'x'" in str(caught.value)


def test_what_plugins_object_to_is_not_counted() -> None:
    with pytest.raises(PeftError, match="needs a recipe of one step"):
        count_recipe(LLAMA_7B, [LoraConfig(bias="all"), LoraConfig()], lora_host())
    with pytest.raises(PeftError, match="at least one step"):
        count_recipe(LLAMA_7B, [], lora_host())


@pytest.mark.parametrize("kind", [LoraConfig, IA3Config, QuantizeConfig, VeraConfig])
def test_an_entry_that_cannot_be_adapted_is_refused_as_it_is_when_applied(
    kind: type[NamedTargetsConfig],
) -> None:
    recipe, host = [kind(target_modules=["LayerNorm", "query"])], Host.installed()
    with pytest.raises(TargetError, match=r"'LayerNorm' names \d+ modules \(LayerNorm\) th") as a:
        count_recipe(BERT, recipe, host)
    with pytest.raises(TargetError) as b:
        get_peft_model(small(BERT), recipe, host=host)
    assert str(a.value) == str(b.value)


def test_a_method_of_no_plugin_is_an_error() -> None:
    with pytest.raises(PluginError, match="provides LoraConfig"):
        count_recipe(LLAMA_7B, [LoraConfig()], Host())


def test_a_method_whose_plugin_does_not_count_is_an_error() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    with pytest.raises(PeftError, match="no plugin counts the parameters of shift"):
        count_recipe(LLAMA_7B, [ShiftConfig()], host)
