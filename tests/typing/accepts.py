"""What a client may write: mypy --strict accepts every line of this file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_type

import numpy as np

import tinygrad_peft
import tinygrad_peft_adapter
import tinygrad_peft_lora
from tinygrad_peft import Host, Module, Parameter, PeftModel, Tensor, Transformer, get_peft_model
from tinygrad_peft.nn import Affine, Block, Init, Linear, MultiHeadAttention
from tinygrad_peft.peft import (
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Site,
    StepEnded,
    TargetedConfig,
    count_recipe,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft_adapter import BottleneckAdapterConfig, LayerAdapter
from tinygrad_peft_lora import LoraConfig

public_names: list[str] = [
    *tinygrad_peft.__all__,
    *tinygrad_peft_adapter.__all__,
    *tinygrad_peft_lora.__all__,
]


# ---------- a method ----------


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(TargetedConfig):
    peft_type: ClassVar[str] = "SCALE"
    start: float = 1.0

    def problems(self) -> list[str]:
        return [*super().problems(), *(["start is zero"] if not self.start else [])]


class ScaleLinear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, start: float, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.scale = Parameter(init.ones(base.out_features) * start)

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * self.scale


@hookimpl(hookspecs.peft_methods)
def peft_methods() -> Sequence[type[PeftConfig]]:
    return [ScaleConfig]


@hookimpl(hookspecs.adapt_module)
def adapt_module(site: Site, config: PeftConfig) -> Module | None:
    if isinstance(config, ScaleConfig) and site.is_target and isinstance(site.module, Affine):
        return ScaleLinear(site.module, config.start, site.init)
    return None


@hookimpl(hookspecs.merge_module)
def merge_module(module: Module) -> Linear | None:
    """A hook may promise more than it must."""
    if not isinstance(module, ScaleLinear) or not isinstance(module.base_layer, Linear):
        return None
    return Linear.of(Parameter(module.scale.data[:, None] * module.base_layer.weight.data))


@hookimpl(hookspecs.count_parameters)
def count_parameters(config: PeftConfig, shape: ModelShape) -> ParameterCount | None:
    count = sum(target.out_features for target in shape.targets)
    return ParameterCount(trainable=count, added=count)


class TestScale(MethodConformance):
    config = ScaleConfig(target_modules=["v_proj"], start=2.0)
    configs = {"gpt2": ScaleConfig(target_modules=["c_attn"])}
    companions = {"lora": LoraConfig(r=2)}
    composes_with = ("lora",)
    starts_as_identity = False


class Watcher:
    """A plugin may be an instance, which remembers what it saw."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @hookimpl(hookspecs.step_ended)
    def step_ended(self, event: StepEnded) -> None:
        self.losses.append(event.loss)

    @hookimpl(hookspecs.check_recipe)
    def check_recipe(self, draft: Draft) -> Sequence[str]:
        return [f"step {i} has no rank" for i, c in enumerate(draft.recipe) if c.peft_type == "X"]


# ---------- a host ----------


def use_host(host: Host, site: Site, draft: Draft) -> None:
    host.register(Watcher(), "watcher")
    answer = host.one(hookspecs.adapt_module, site, LoraConfig())
    assert_type(answer, Module | None)
    if answer is not None:
        answer.eval()
    assert_type(host.one(hookspecs.merge_module, module=site.module), Module | None)
    assert_type(host.each(hookspecs.check_recipe, draft), list[Sequence[str]])
    kinds: dict[str, type[PeftConfig]] = dict(host.methods())
    versions: list[tuple[str, str]] = [(info.distribution, info.version) for info in host.plugins()]
    print(kinds, versions)


# ---------- a recipe ----------


def adapt(model: Transformer, directory: Path) -> None:
    one = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], bias="lora_only"))
    assert_type(one, PeftModel)
    recipe: list[LoraConfig | ScaleConfig | BottleneckAdapterConfig] = [
        LoraConfig(target_modules="all-linear"),
        BottleneckAdapterConfig(placement="houlsby", reduction_factor=16, layers_to_transform=[0]),
        ScaleConfig(),
    ]
    many = get_peft_model(model, recipe, seed=1, host=Host.installed())
    assert_type(many(np.array([[1, 2]])), Tensor)
    trainable, total = many.get_nb_trainable_parameters()
    share: float = trainable / total
    with many.disable_adapter():
        many.loss(np.array([[1, 2]]), np.array([[1, 2]])).backward()
    many.merge_adapter()
    many.unmerge_adapter()
    many.save_pretrained(directory)
    again = PeftModel.from_pretrained(many.merge_and_unload(), str(directory), is_trainable=True)
    assert_type(again.unload(), Transformer)
    assert_type(count_recipe(model.config, recipe, Host.installed()), tuple[int, int])
    print(share)


# ---------- a seam ----------


def put_an_adapter_around_a_layer(block: Block, init: Init) -> None:
    config = BottleneckAdapterConfig(bottleneck_dim=8, activation="gelu", scaling=0.5)
    block.mlp = LayerAdapter(block.mlp, config, 16, init)
    assert_type(block.mlp(Tensor([[[0.0]]])), Tensor)
    width: int = config.bottleneck(768)
    print(width)


def put_anything_affine_into_a_seam(attention: MultiHeadAttention, init: Init) -> None:
    attention.q_proj = ScaleLinear(attention.q_proj, 1.0, init)
    attention.k_proj = Linear(4, 4)
    width: int = attention.q_proj.in_features
    print(width)
