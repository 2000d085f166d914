"""Programs that clients may write: mypy --strict accepts every line of this file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, assert_type

import numpy as np
import numpy.typing as npt

import tinygrad_peft
import tinygrad_peft_adapter
import tinygrad_peft_lora
import tinygrad_peft_prefix
import tinygrad_peft_prompt
import tinygrad_peft_qlora
from tinygrad_peft import Host, Module, Parameter, PeftModel, Tensor, Transformer, get_peft_model
from tinygrad_peft.nn import (
    Affine,
    Block,
    Context,
    Init,
    Linear,
    MultiHeadAttention,
    NoPrefix,
    VirtualKeys,
    VirtualTokens,
)
from tinygrad_peft.peft import (
    Combination,
    Combined,
    Draft,
    ModelShape,
    ParameterCount,
    PeftConfig,
    Reparameterized,
    Site,
    TargetedConfig,
    VirtualConfig,
    count_recipe,
    hookimpl,
    hookspecs,
    methods_of,
    virtual_objections,
)
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft.train import StepEnded
from tinygrad_peft.train import hookspecs as train_hookspecs
from tinygrad_peft_adapter import BottleneckAdapterConfig, LayerAdapter
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig, ProjectedPrefix, TrainedPrefix
from tinygrad_peft_prompt import (
    PromptEncoder,
    PromptEncoderConfig,
    PromptTuningConfig,
    SoftPrompt,
)
from tinygrad_peft_qlora import (
    QLoraConfig,
    QuantizeConfig,
    QuantizedLinear,
    RequantizeReport,
    merge_requantized,
    quantize,
)

public_names: list[str] = [
    *tinygrad_peft.__all__,
    *tinygrad_peft_adapter.__all__,
    *tinygrad_peft_lora.__all__,
    *tinygrad_peft_qlora.__all__,
    *tinygrad_peft_prefix.__all__,
    *tinygrad_peft_prompt.__all__,
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


@hookimpl(hookspecs.adapt_module, ScaleConfig)
def adapt_module(config: ScaleConfig, site: Site) -> Module | None:
    if site.is_target and isinstance(site.module, Affine):
        return ScaleLinear(site.module, config.start, site.init)
    return None


@hookimpl(hookspecs.merge_module, ScaleLinear)
def merge_module(module: ScaleLinear) -> Linear | None:
    """A hook may promise more than it must."""
    if not isinstance(module.base_layer, Linear):
        return None
    return Linear.of(Parameter(module.scale.data[:, None] * module.base_layer.weight.data))


@hookimpl(hookspecs.combine_adapters, ScaleConfig)
def combine_adapters(config: ScaleConfig, combination: Combination) -> Combined:
    starts: list[float] = [source.start for source in combination.configs(ScaleConfig)]
    return Combined(replace(config, start=max(starts)), combination.sources[0].tensors)


@hookimpl(hookspecs.adapt_module, TargetedConfig)
def adapt_any_targeted(config: PeftConfig, site: Site) -> None:
    """A hook may take more than it must."""


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

    @hookimpl(train_hookspecs.step_ended)
    def step_ended(self, event: StepEnded) -> None:
        self.losses.append(event.loss)

    @hookimpl(hookspecs.check_recipe)
    def check_recipe(self, draft: Draft) -> Sequence[str]:
        return [f"step {i} has no rank" for i, config in draft.steps(LoraConfig) if not config.r]

    @hookimpl(hookspecs.merge_module, ScaleLinear)
    def merge_module(self, module: ScaleLinear) -> Module | None:
        return module if module.scale.data.all() else None


# ---------- a host ----------


def use_host(host: Host, site: Site, draft: Draft) -> None:
    host.register(Watcher(), "watcher")
    answer = host.one(hookspecs.adapt_module, LoraConfig(), site)
    assert_type(answer, Module | None)
    if answer is not None:
        answer.eval()
    assert_type(host.one(hookspecs.merge_module, module=site.module), Module | None)
    assert_type(host.each(hookspecs.check_recipe, draft), list[Sequence[str]])
    kinds: dict[str, type[PeftConfig]] = dict(methods_of(host))
    providers = [
        (answer.plugin.name, [kind.peft_type for kind in answer.value])
        for answer in host.answers(hookspecs.peft_methods)
    ]
    broken: list[str] = [info.error for info in Host.installed(without=["vera"]).plugins()]
    versions: list[tuple[str, str]] = [(info.distribution, info.version) for info in host.plugins()]
    print(kinds, versions, providers, broken)


# ---------- tensors beside arrays ----------


def mix(tensor: Tensor, array: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64]) -> None:
    assert_type(array + tensor, Tensor)
    assert_type(array - tensor, Tensor)
    assert_type(array / tensor, Tensor)
    assert_type(matrix @ tensor, Tensor)
    assert_type(tensor * array, Tensor)
    assert_type(np.float64(2) * tensor, Tensor)
    assert_type(2 - tensor, Tensor)
    (np.ones(3) * tensor).sum().backward()
    exponentials: npt.NDArray[np.floating] = np.exp(tensor.numpy())
    print(exponentials)


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
    many.save_pretrained(directory, layout="AdapterHub")
    again = PeftModel.from_pretrained(many.merge_and_unload(), str(directory), is_trainable=True)
    assert_type(again.unload(), Transformer)
    assert_type(count_recipe(model.config, recipe, Host.installed()), tuple[int, int])
    print(share)


def stay_at_4_bits(model: Transformer) -> list[str]:
    recipe: list[PeftConfig] = [QuantizeConfig(quant_type="int4"), LoraConfig()]
    get_peft_model(model, recipe).unload()
    peft = get_peft_model(model, QLoraConfig(r=4, block_size=128, double_quant=True))
    peft.release_base()
    merged, report = merge_requantized(peft)
    assert_type(merged, Transformer)
    assert_type(report, RequantizeReport)
    return [layer.path for layer in report.lost if layer.cosine < 0.1]


# ---------- a seam ----------


def put_a_4_bit_layer_into_a_seam(attention: MultiHeadAttention, linear: Linear) -> None:
    packed = quantize(linear.weight.data, quant_type="nf4", double_quant=True)
    attention.q_proj = QuantizedLinear(packed, linear.bias)
    bits: float = packed.bits_per_weight
    print(bits)


def put_an_adapter_around_a_layer(block: Block, init: Init, context: Context) -> None:
    config = BottleneckAdapterConfig(bottleneck_dim=8, activation="gelu", scaling=0.5)
    block.mlp = LayerAdapter(block.mlp, config, 16, init)
    assert_type(block.mlp(Tensor([[[0.0]]]), context), Tensor)
    width: int = config.bottleneck(768)
    print(width)


def put_anything_affine_into_a_seam(attention: MultiHeadAttention, init: Init) -> None:
    attention.q_proj = ScaleLinear(attention.q_proj, 1.0, init)
    attention.k_proj = Linear(4, 4)
    width: int = attention.q_proj.in_features
    print(width)


def put_virtual_tokens_before_every_text(model: Transformer, init: Init, draft: Draft) -> None:
    kinds: list[VirtualConfig] = [
        PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, init_weights="zero"),
        PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB"),
        PromptEncoderConfig(encoder_hidden_size=8, modules_to_save=["classifier"]),
    ]
    get_peft_model(model, kinds)
    prefix = ProjectedPrefix(NoPrefix(), PrefixTuningConfig(), model.config, init)
    model.prefix = prefix
    assert_type(prefix(), VirtualKeys)
    assert_type(prefix.flattened(), TrainedPrefix)
    model.prompt = SoftPrompt(model.prompt, init.zeros(4, 8))
    assert_type(SoftPrompt(model.prompt, init.zeros(4, 8))(), VirtualTokens)
    trained: list[Reparameterized] = [
        prefix,
        PromptEncoder(model.prompt, PromptEncoderConfig(), 8, init),
    ]
    objections: list[str] = virtual_objections(draft, PrefixTuningConfig, PromptTuningConfig)
    print(trained, objections)
