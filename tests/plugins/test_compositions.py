"""All pairs of five methods in both orders, and some of three, on each family."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.peft.small import FAMILIES, IDS, Snapshot, logits, small
from tinygrad_peft.arrays import IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import AdamW, Transformer
from tinygrad_peft.peft import PeftConfig, PeftModel, get_peft_model
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig
from tinygrad_peft_qlora import QLoraConfig

METHODS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=2),
    "adapter": BottleneckAdapterConfig(bottleneck_dim=4, placement="houlsby"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
    "prompt": PromptTuningConfig(num_virtual_tokens=2),
    "qlora": QLoraConfig(r=2),
}
PAIRS = list(itertools.product(METHODS, repeat=2))
METHODS |= {"ia3": IA3Config()}  # only in threes, to save time
TRIPLES = [
    ("qlora", "adapter", "prefix"),
    ("qlora", "lora", "prompt"),
    ("qlora", "prompt", "prefix"),
    ("lora", "adapter", "prompt"),
    ("lora", "prompt", "adapter"),
    ("lora", "lora", "lora"),
    ("adapter", "prefix", "lora"),
    ("adapter", "adapter", "prefix"),
    ("prefix", "prompt", "lora"),
    ("prefix", "prefix", "prompt"),
    ("prompt", "prompt", "adapter"),
    ("prompt", "qlora", "adapter"),
    ("qlora", "ia3", "lora"),
    ("ia3", "lora", "ia3"),
    ("adapter", "ia3", "prefix"),
]
MERGEABLE = {"lora", "qlora", "ia3"}
LABELS = {"gpt2": IDS, "llama": IDS, "bert": np.array([0, 2])}


def refused(names: Sequence[str]) -> bool:
    """Only plain layers are quantised, before another method wraps them."""
    touched = [i for i, name in enumerate(names) if name in MERGEABLE]
    return any(names[i] == "qlora" for i in touched[1:])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained(model: Transformer, names: Sequence[str], labels: IntArray) -> PeftModel:
    """Return the composition after three steps on one batch."""
    peft = get_peft_model(model, [METHODS[name] for name in names])
    optimizer = AdamW(peft.trainable_parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = peft.loss(IDS, labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    return peft


@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids="+".join)
def test_a_composition_is_applied_trained_saved_and_removed(
    names: Sequence[str], family: str, tmp_path: Path
) -> None:
    model = small(FAMILIES[family])
    before, plain = Snapshot.of(model), logits(model)
    if refused(names):
        with pytest.raises(PeftError, match="quanti"):
            get_peft_model(model, [METHODS[name] for name in names])
        before.assert_unchanged(model)
        return

    peft = trained(model, names, LABELS[family])
    learnt = logits(peft)
    assert not np.array_equal(learnt, plain)

    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(FAMILIES[family]), tmp_path)
    np.testing.assert_array_equal(logits(again), learnt)
    assert again.recipe == peft.recipe

    if set(names) <= MERGEABLE:
        peft.merge_adapter()
    else:
        with pytest.raises(PeftError, match="cannot be merged, and nothing was"):
            peft.merge_adapter()
        np.testing.assert_array_equal(logits(peft), learnt)
        peft.merge_adapter(partial=True)
    np.testing.assert_allclose(logits(peft), learnt, atol=1e-5)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), learnt)

    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), plain)
    assert peft.unload() is model
    before.assert_unchanged(model)
