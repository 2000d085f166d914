import numpy as np
import pytest

from tinygrad_peft.reference import (
    Adapter,
    LoRAMultiHeadAttention,
    PrefixTuning,
    PromptTuning,
    analyze_peft_efficiency,
    compare_peft_methods,
)

SEVEN_BILLION = {"d_model": 4096, "n_layers": 32, "n_heads": 32}


def test_the_counts_at_seven_billion_are_the_published_ones() -> None:
    counts = compare_peft_methods()
    assert {name: count["params"] for name, count in counts.items()} == {
        "full": 2_147_483_648,
        "lora": 4_194_304,
        "adapters": 33_554_432,
        "prefix": 2_621_440,
        "prompt": 81_920,
    }
    assert [f"{100 * count['ratio']:.4f}" for count in counts.values()] == [
        "100.0000",
        "0.1953",
        "1.5625",
        "0.1221",
        "0.0038",
    ]


def test_the_counts_are_those_of_the_real_things() -> None:
    counts = compare_peft_methods(
        d_model=12,
        num_layers=3,
        num_heads=2,
        lora_rank=4,
        adapter_bottleneck=5,
        prefix_length=6,
        prompt_length=7,
    )
    attention = LoRAMultiHeadAttention(12, 2, rank=4)
    assert counts["full"]["params"] == 3 * 4 * np.ones((12, 12)).size
    assert counts["lora"]["params"] == 3 * attention.count_trainable_params()
    assert counts["adapters"]["params"] == 3 * 2 * Adapter(12, 5).num_parameters()
    assert counts["prefix"]["params"] == PrefixTuning(3, 2, 6, 6).num_parameters()
    assert counts["prompt"]["params"] == PromptTuning(12, 7).num_parameters()


@pytest.mark.parametrize(
    ("method", "same"),
    [("lora", "lora"), ("adapter", "adapters"), ("prefix", "prefix"), ("prompt", "prompt")],
)
def test_the_analysis_agrees_with_the_comparison(method: str, same: str) -> None:
    found = analyze_peft_efficiency(SEVEN_BILLION, method, {})
    counts = compare_peft_methods()
    assert found["trainable_params"] == counts[same]["params"]
    assert found["total_params"] == counts["full"]["params"]
    assert found["efficiency_ratio"] == counts[same]["ratio"]


@pytest.mark.parametrize(
    ("method", "sizes", "trainable"),
    [
        ("lora", {"rank": 16}, 2 * 4_194_304),
        ("lora", {"lora_rank": 16}, 2 * 4_194_304),
        ("adapter", {"bottleneck": 128}, 2 * 33_554_432),
        ("adapter", {"bottleneck_dim": 128}, 2 * 33_554_432),
        ("prefix", {"length": 20}, 2 * 2_621_440),
        ("prefix", {"prefix_length": 20}, 2 * 2_621_440),
        ("prompt", {"length": 40}, 2 * 81_920),
        ("prompt", {"prompt_length": 40}, 2 * 81_920),
    ],
)
def test_a_methods_size_may_be_given_under_either_name(
    method: str, sizes: dict[str, int], trainable: int
) -> None:
    found = analyze_peft_efficiency({"d_model": 4096, "num_layers": 32}, method, sizes)
    assert found["trainable_params"] == trainable


def test_feed_forward_layers_and_embeddings_are_counted_when_they_are_given() -> None:
    gpt2 = {"d_model": 768, "n_layers": 12, "d_ff": 3072, "vocab_size": 50_257}
    found = analyze_peft_efficiency(gpt2, "lora", {"rank": 8})
    matrices = 12 * (768 * 3 * 768 + 768 * 768 + 2 * 768 * 3072) + 50_257 * 768
    assert found["total_params"] == matrices


def test_the_memory_is_that_of_the_arrays() -> None:
    found = analyze_peft_efficiency({"d_model": 12, "n_layers": 1}, "adapter", {"bottleneck": 5})
    adapters = [Adapter(12, 5) for _ in range(2)]
    trained = sum(a.W_down.astype(np.float32).nbytes for a in adapters)
    trained += sum(a.W_up.astype(np.float32).nbytes for a in adapters)
    model = sum(np.ones((12, 12), np.float32).nbytes for _ in "qkvo")
    value_gradient_two_moments = 4
    assert found["memory_estimate"] == model + value_gradient_two_moments * trained


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 4096"):
        compare_peft_methods(num_heads=5)
    with pytest.raises(ValueError, match="expected at least 1, got num_layers=0, lora_rank=0"):
        compare_peft_methods(num_layers=0, lora_rank=0)
    with pytest.raises(ValueError, match=r"unknown method 'adapters', .* did you mean 'adapter'\?"):
        analyze_peft_efficiency(SEVEN_BILLION, "adapters", {})
    with pytest.raises(ValueError, match="unknown key of method_config 'bottleneck'"):
        analyze_peft_efficiency(SEVEN_BILLION, "lora", {"bottleneck": 8})
    with pytest.raises(ValueError, match=r"unknown key of model_config 'd_modle', .*'d_model'\?"):
        analyze_peft_efficiency({"d_modle": 8}, "lora", {})
    with pytest.raises(ValueError, match="model_config: n_layers or num_layers is missing"):
        analyze_peft_efficiency({"d_model": 8}, "lora", {})
    with pytest.raises(ValueError, match="5 heads do not divide a width of 4096"):
        analyze_peft_efficiency({**SEVEN_BILLION, "n_heads": 5}, "prefix", {})
    with pytest.raises(ValueError, match="expected at least 1, got bottleneck=0"):
        analyze_peft_efficiency(SEVEN_BILLION, "adapter", {"bottleneck": 0})
