"""Whole blocks, wrapped by a method that acts on the ends of each row's prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import tinygrad_peft_lora.plugin
import tinygrad_peft_prefix.plugin
import tinygrad_peft_prompt.plugin
from tests.peft.small import LLAMA, Snapshot, logits, plugin, shake, small
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import BlockLike, Context, Init, Module, Parameter, Transformer
from tinygrad_peft.peft import (
    Host,
    ModelShape,
    ParameterCount,
    PeftConfig,
    PeftModel,
    Site,
    TargetedConfig,
    get_peft_model,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.tensor import Tensor
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig

BLOCKS = {"gpt2": ("h.0",), "llama": ("layers.0",), "bert": ("layer.0",)}


@dataclass(frozen=True, kw_only=True)
class SteerConfig(TargetedConfig):
    """A trained vector, added to a block's output at the first and last tokens of the prompt."""

    peft_type: ClassVar[str] = "STEER"
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = BLOCKS
    not_mergeable: ClassVar[str] = "it acts on some positions alone"


class SteeredBlock(Module):
    """block(x) + m ⊙ v, m being 1 at two ends of each prompt: (B, T, D) -> (B, T, D)."""

    base_layer: BlockLike

    def __init__(self, base: BlockLike, width: int, init: Init) -> None:
        self.base_layer = base
        self.steer_v = Parameter(init.zeros(width))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        y = self.base_layer(x, context)
        ends = context.roles.first(1) | context.roles.last(2)  # (B, T)
        return y + Tensor(ends[..., None].astype(y.dtype)) * self.steer_v


def steer(config: PeftConfig, site: Site) -> Module | None:
    wanted = isinstance(config, SteerConfig) and site.is_target
    if not wanted or site.slot != "blocks" or not isinstance(site.model, Transformer):
        return None
    assert isinstance(site.module, BlockLike)
    return SteeredBlock(site.module, site.model.config.hidden_size, site.init)


@hookimpl(hookspecs.count_parameters)
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    if not isinstance(config, SteerConfig):
        return None
    count = shape.config.hidden_size
    return ParameterCount(trainable=count, added=count)


def steering_host() -> Host:
    host = Host()
    host.register(plugin(SteerConfig, adapt=steer, count_parameters=count_parameters), "steer")
    host.register(tinygrad_peft_lora.plugin, "lora")
    host.register(tinygrad_peft_prefix.plugin, "prefix")
    host.register(tinygrad_peft_prompt.plugin, "prompt")
    return host


def steered(*before: PeftConfig) -> PeftModel:
    peft = get_peft_model(small(), [*before, SteerConfig()], host=steering_host())
    shake(peft)
    return peft


class TestSteering(MethodConformance):
    """It keeps all promises, with prompts, padding, the cache, and adapters by row."""

    config = SteerConfig()
    mergeable = False

    @classmethod
    def plugins(cls) -> Host:
        return steering_host()


def test_a_block_is_a_seam_by_its_checkpoint_path() -> None:
    (rewrite,) = steered().record.rewrites
    assert (rewrite.seam.path, rewrite.seam.name) == ("model.layers.0", "blocks.0")
    assert list(rewrite.added) == ["steer_v"]


@pytest.mark.parametrize("first", [0, 1])
def test_layers_within_a_wrapped_block_are_adapted_in_any_order(first: int) -> None:
    recipe = [SteerConfig(), LoraConfig(r=2)]
    peft = get_peft_model(small(), recipe[first:] + recipe[:first], host=steering_host())
    shake(peft)
    paths = {rewrite.seam.path for rewrite in peft.record.rewrites}
    assert paths >= {"model.layers.0", "model.layers.0.self_attn.q_proj"}
    alone = get_peft_model(small(), LoraConfig(r=2), host=steering_host())
    assert {p.split(".", 1)[0] for p in paths} == {"model"}
    assert len(peft.record.rewrites) == len(alone.record.rewrites) + 1


def test_a_block_comes_back_to_the_bit() -> None:
    model = small()
    before, expected = Snapshot.of(model), logits(model)
    peft = get_peft_model(model, SteerConfig(), host=steering_host())
    shake(peft)
    assert not np.array_equal(logits(peft), expected)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), expected)
    before.assert_unchanged(peft.unload())


def test_a_saved_intervention_gives_the_same_logits(tmp_path: Path) -> None:
    peft = steered(LoraConfig(r=2))
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path, host=steering_host())
    np.testing.assert_array_equal(logits(loaded), logits(peft))


@pytest.mark.parametrize(
    "before",
    [
        [],
        [PromptTuningConfig(num_virtual_tokens=3)],
        [PrefixTuningConfig(num_virtual_tokens=3)],
        [PromptTuningConfig(num_virtual_tokens=2), PrefixTuningConfig(num_virtual_tokens=1)],
    ],
    ids=["alone", "prompt", "prefix", "both"],
)
def test_padded_prompts_are_continued_as_they_are_alone(before: list[PeftConfig]) -> None:
    peft = steered(*before)
    prompts = [[7], [3, 1, 4, 1, 5], [9, 2, 6]]
    padded = np.array([[0] * (5 - len(p)) + p for p in prompts])
    mask = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    together = peft.generate(padded, max_new_tokens=6, attention_mask=mask)
    for row, prompt in zip(together, prompts, strict=True):
        alone = peft.generate(np.array([prompt]), max_new_tokens=6)
        np.testing.assert_array_equal(row[5:], alone[0, len(prompt) :])


def test_a_module_that_is_called_otherwise_is_refused() -> None:
    class Old(Module):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    def adapt(config: PeftConfig, site: Site) -> Module | None:
        return Old() if site.slot == "mlp" and isinstance(config, SteerConfig) else None

    host = Host()
    host.register(plugin(SteerConfig, adapt=adapt), "steer")
    message = r"mlp: expected a module called as \(x, context\), got Old, called as \(x\)"
    with pytest.raises(PeftError, match=message):
        get_peft_model(small(LLAMA), SteerConfig(target_modules=["mlp"]), host=host)
