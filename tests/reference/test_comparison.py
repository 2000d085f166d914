from collections.abc import Sequence

import numpy as np
import pytest

from tinygrad_peft.arrays import Array
from tinygrad_peft.reference import (
    Adapter,
    LoRAMultiHeadAttention,
    PrefixTuning,
    PromptTuning,
    analyze_peft_efficiency,
    compare_peft_methods,
    compute_parameter_efficiency,
    count_frozen_parameters,
    count_trainable_parameters,
)

SEVEN_BILLION = {"d_model": 4096, "n_layers": 32, "n_heads": 32}


def test_the_counts_at_seven_billion_are_the_published_ones() -> None:
    counts = compare_peft_methods()
    assert {name: count["params"] for name, count in counts.items()} == {
        "full_fine_tuning": 2_147_483_648,
        "lora": 4_194_304,
        "adapters": 33_554_432,
        "prefix_tuning": 2_621_440,
        "prompt_tuning": 81_920,
    }
    assert [f"{100 * count['ratio']:.4f}" for count in counts.values()] == [
        "100.0000",
        "0.1953",
        "1.5625",
        "0.1221",
        "0.0038",
    ]


def test_the_counts_match_the_real_objects() -> None:
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
    assert counts["full_fine_tuning"]["params"] == 3 * 4 * np.ones((12, 12)).size
    assert counts["lora"]["params"] == 3 * attention.count_trainable_params()
    assert counts["adapters"]["params"] == 3 * 2 * Adapter(12, 5).num_parameters()
    assert counts["prefix_tuning"]["params"] == PrefixTuning(3, 2, 6, 6).num_parameters()
    assert counts["prompt_tuning"]["params"] == PromptTuning(12, 7).num_parameters()


@pytest.mark.parametrize(
    ("method", "same"),
    [
        ("lora", "lora"),
        ("adapter", "adapters"),
        ("prefix", "prefix_tuning"),
        ("prompt", "prompt_tuning"),
    ],
)
def test_the_analysis_agrees_with_the_comparison(method: str, same: str) -> None:
    found = analyze_peft_efficiency(SEVEN_BILLION, method, {})
    counts = compare_peft_methods()
    assert found["trainable_params"] == counts[same]["params"]
    assert found["total_params"] == counts["full_fine_tuning"]["params"]
    assert found["efficiency_ratio"] == counts[same]["ratio"]


@pytest.mark.parametrize(
    ("method", "sizes", "trainable"),
    [
        ("lora", {"rank": 16}, 2 * 4_194_304),
        ("lora", {"lora_rank": 16}, 2 * 4_194_304),
        ("lora", {"r": 16, "lora_alpha": 8, "dropout": 0.1}, 2 * 4_194_304),
        ("lora", {"r": 16, "target_modules": ["q", "k", "v", "o"]}, 4 * 4_194_304),
        ("lora", {"alpha": 16.0, "target_modules": ["q", "q"]}, 4_194_304 // 2),
        ("lora", {"target_modules": "q"}, 4_194_304 // 2),
        ("lora", {"target_modules": None}, 4_194_304),
        ("adapter", {"bottleneck": 128}, 2 * 33_554_432),
        ("adapter", {"bottleneck_dim": 128, "activation": "gelu"}, 2 * 33_554_432),
        ("adapter", {"adapter_bottleneck": 128}, 2 * 33_554_432),
        ("prefix", {"length": 20}, 2 * 2_621_440),
        ("prefix", {"prefix_length": 20}, 2 * 2_621_440),
        ("prompt", {"length": 40}, 2 * 81_920),
        ("prefix", {"num_virtual_tokens": 20}, 2 * 2_621_440),
        ("prompt", {"prompt_length": 40}, 2 * 81_920),
        ("prompt", {"num_virtual_tokens": 40}, 2 * 81_920),
    ],
)
def test_a_methods_size_may_be_given_under_any_of_its_names(
    method: str, sizes: dict[str, object], trainable: int
) -> None:
    found = analyze_peft_efficiency({"d_model": 4096, "num_layers": 32}, method, sizes)
    assert found["trainable_params"] == trainable


def test_feed_forward_layers_and_embeddings_are_counted_when_they_are_given() -> None:
    gpt2 = {"d_model": 768, "n_layers": 12, "d_ff": 3072, "vocab_size": 50_257}
    found = analyze_peft_efficiency(gpt2, "lora", {"rank": 8})
    matrices = 12 * (768 * 3 * 768 + 768 * 768 + 2 * 768 * 3072) + 50_257 * 768
    assert found["total_params"] == matrices
    assert found["counted"] == "attention projections + feed-forward matrices + embeddings"
    bare = analyze_peft_efficiency({"d_model": 768, "n_layers": 12}, "lora", {})
    assert bare["counted"] == "attention projections"


def test_the_memory_saved_is_the_size_of_the_arrays() -> None:
    found = analyze_peft_efficiency({"d_model": 12, "n_layers": 1}, "adapter", {"bottleneck": 5})
    adapters = [array for _ in range(2) for array in Adapter(12, 5).parameters()]
    model = [np.ones((12, 12)) for _ in "qkvo"]
    value_gradient_two_moments = 4
    full = value_gradient_two_moments * nbytes(model)
    needed = nbytes(model) + value_gradient_two_moments * nbytes(adapters)
    assert (found["memory_full"], found["memory_needed"]) == (full, needed)
    assert found["memory_estimate"] == full - needed


def nbytes(arrays: Sequence[Array]) -> int:
    return sum(array.astype(np.float32).nbytes for array in arrays)


def test_counts_of_arrays_and_their_ratio() -> None:
    arrays = [np.zeros((10, 20)), np.zeros(30)]
    assert count_trainable_parameters(arrays) == count_frozen_parameters(arrays) == 230
    assert compute_parameter_efficiency(1000, 100_000) == {
        "trainable_params": 1000,
        "total_params": 100_000,
        "trainable_ratio": 0.01,
        "efficiency_gain": 100.0,
    }
    nothing = compute_parameter_efficiency(0, 0)
    assert (nothing["trainable_ratio"], nothing["efficiency_gain"]) == (0.0, np.inf)


def test_everything_that_is_wrong_with_a_configuration_is_said_at_once() -> None:
    model = {"n_layers": 2, "num_layers": 3, "heads": 4, "d_ff": 0}
    method = {"rank": 2.5, "r": 8, "target_modules": ["q", "w"], "length": 5}
    with pytest.raises(ValueError, match="heads") as caught:
        analyze_peft_efficiency(model, "lora", method)
    message = str(caught.value)
    for problem in (
        "unknown key of model_config 'heads'",
        "expected at least 1, got d_ff=0",
        "model_config: d_model is missing",
        "model_config: expected one of n_layers and num_layers, got both",
        "unknown key of method_config 'length'",
        "expected at least 1, got rank=2.5",
        "method_config: expected one of rank and r, got both",
        "unknown target 'w', expected one of q, k, v, o",
    ):
        assert problem in message


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
