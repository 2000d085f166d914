"""Mistakes that mypy --strict must reject: an ignore that is not needed is an error in itself."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import tinygrad_peft
import tinygrad_peft_adapter
import tinygrad_peft_lora
import tinygrad_peft_prefix
import tinygrad_peft_prompt
import tinygrad_peft_qlora
from tinygrad_peft import Host, Module, Tensor, Transformer, get_peft_model
from tinygrad_peft.nn import Affine, Embedding, Init, MultiHeadAttention
from tinygrad_peft.peft import (
    Draft,
    PeftConfig,
    Site,
    config_from_dict,
    hookimpl,
    hookspecs,
    methods_of,
)
from tinygrad_peft.testing import MethodConformance
from tinygrad_peft.train import StepEnded
from tinygrad_peft.train import hookspecs as train_hookspecs
from tinygrad_peft_adapter import AttentionAdapter, BottleneckAdapterConfig, LayerAdapter
from tinygrad_peft_lora import LoraConfig, LoraLinear
from tinygrad_peft_prefix import PrefixTuningConfig, TrainedPrefix
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig, SoftPrompt
from tinygrad_peft_qlora import QLoraConfig, QuantizeConfig, quantize

tinygrad_peft.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_adapter.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_lora.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_qlora.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_prefix.no_such_name  # type: ignore[attr-defined]
tinygrad_peft_prompt.no_such_name  # type: ignore[attr-defined]


# ---------- tensors beside arrays ----------

tensor = Tensor([1.0, 2.0])
array: npt.NDArray[np.float64] = np.ones(2)
np.exp(tensor)  # type: ignore[call-overload]
np.sum(tensor)  # type: ignore[call-overload]
np.stack([tensor])  # type: ignore[arg-type]
Tensor(tensor)  # type: ignore[arg-type]
added: npt.NDArray[np.float64] = array + tensor  # type: ignore[assignment]
array += tensor  # type: ignore[call-overload]


# ---------- configs ----------

LoraConfig(rang=8)  # type: ignore[call-arg]
LoraConfig(r="8")  # type: ignore[arg-type]
LoraConfig(8)  # type: ignore[call-arg, arg-type]
LoraConfig(bias="some")  # type: ignore[arg-type]
LoraConfig(init_lora_weights=None)  # type: ignore[arg-type]
LoraConfig(target_modules={"q_proj"})  # type: ignore[arg-type]
LoraConfig(rank_pattern={"q_proj": "4"})  # type: ignore[dict-item]
LoraConfig().r = 4  # type: ignore[misc]
LoraConfig().rank_pattern["q_proj"] = 4  # type: ignore[index]
LoraConfig().rang  # type: ignore[attr-defined]
BottleneckAdapterConfig(r=8)  # type: ignore[call-arg]
BottleneckAdapterConfig(placement="before")  # type: ignore[arg-type]
BottleneckAdapterConfig(activation="gelu_new")  # type: ignore[arg-type]
BottleneckAdapterConfig(init_weights=False)  # type: ignore[arg-type]
BottleneckAdapterConfig(bottleneck_dim=8.5)  # type: ignore[arg-type]
BottleneckAdapterConfig(layers_to_transform="0")  # type: ignore[arg-type]
BottleneckAdapterConfig().scaling = 4  # type: ignore[misc]
QuantizeConfig(r=8)  # type: ignore[call-arg]
QuantizeConfig(quant_type="fp4")  # type: ignore[arg-type]
QuantizeConfig(target_modules=None)  # type: ignore[arg-type]
QLoraConfig(block_size="64")  # type: ignore[arg-type]
quantize(LoraConfig())  # type: ignore[arg-type]
PrefixTuningConfig(20)  # type: ignore[arg-type, call-arg]
PrefixTuningConfig(prefix_length=20)  # type: ignore[call-arg]
PrefixTuningConfig(init_weights="one")  # type: ignore[arg-type]
PrefixTuningConfig(num_virtual_tokens=None)  # type: ignore[arg-type]
PrefixTuningConfig(target_modules=["q_proj"])  # type: ignore[call-arg]
PromptTuningConfig(prompt_tuning_init="WORDS")  # type: ignore[arg-type]
PromptTuningConfig(encoder_hidden_size=8)  # type: ignore[call-arg]
PromptTuningConfig().num_virtual_tokens = 4  # type: ignore[misc]
PromptEncoderConfig(encoder_reparameterization_type="GRU")  # type: ignore[arg-type]
config_from_dict(LoraConfig, {}).rang  # type: ignore[attr-defined]
config_from_dict(Module, {})  # type: ignore[type-var]


# ---------- hooks ----------


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def takes_too_little(config: PeftConfig) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def takes_something_else(config: str, site: Site) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def takes_its_own_config_without_saying_so(config: LoraConfig, site: Site) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def takes_other_names(settings: PeftConfig, place: Site) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def takes_another_order(site: Site, config: PeftConfig) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module)  # type: ignore[arg-type]
def gives_something_else(config: PeftConfig, site: Site) -> Tensor | None:
    return None


@hookimpl(hookspecs.check_recipe)  # type: ignore[arg-type]
def gives_nothing(draft: Draft) -> None: ...


@hookimpl(hookspecs.adapt_module, LoraConfig)  # type: ignore[arg-type]
def takes_another_kind(config: QuantizeConfig, site: Site) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module, LoraConfig)  # type: ignore[arg-type]
def takes_its_kind_and_too_little(config: LoraConfig) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module, LoraConfig)  # type: ignore[arg-type]
def takes_its_kind_and_something_else(config: LoraConfig, site: Module) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module, LoraConfig)  # type: ignore[arg-type]
def takes_its_kind_and_another_name(config: LoraConfig, place: Site) -> Module | None:
    return None


@hookimpl(hookspecs.adapt_module, LoraConfig)  # type: ignore[arg-type]
def gives_something_else_for_its_kind(config: LoraConfig, site: Site) -> Tensor | None:
    return None


@hookimpl(hookspecs.adapt_module, LoraLinear)  # type: ignore[misc]
def asks_for_the_wrong_kind(config: LoraConfig, site: Site) -> Module | None:
    return None


@hookimpl(hookspecs.merge_module, LoraLinear)  # type: ignore[arg-type]
def takes_another_module(module: MultiHeadAttention) -> Module | None:
    return None


@hookimpl(hookspecs.peft_methods, LoraConfig)  # type: ignore[arg-type]
def has_nothing_to_narrow() -> Sequence[type[PeftConfig]]:
    return [LoraConfig]


class Watcher:
    @hookimpl(hookspecs.merge_module, LoraLinear)  # type: ignore[arg-type]
    def merge_module(self, module: Affine) -> int:  # type: ignore[misc]
        return 1

    @hookimpl(train_hookspecs.step_ended)  # type: ignore[arg-type]
    def step_ended(self, event: Draft) -> None: ...  # type: ignore[misc]


@hookimpl(hookspecs.no_such_hook)  # type: ignore[attr-defined]
def no_such_hook() -> Sequence[str]:
    return []


# ---------- the host ----------


def use_host(host: Host, site: Site, draft: Draft, event: StepEnded) -> None:
    host.one(hookspecs.adapt_module, LoraConfig())  # type: ignore[call-arg]
    host.one(hookspecs.adapt_module, "lora", site)  # type: ignore[arg-type]
    host.one(hookspecs.adapt_module, site, LoraConfig())  # type: ignore[arg-type]
    host.one(hookspecs.adapt_module, LoraConfig(), site=site, wrong=1)  # type: ignore[call-arg]
    host.each(hookspecs.check_recipe, event)  # type: ignore[arg-type]
    host.each(hookspecs.no_such_hook)  # type: ignore[attr-defined]
    host.one(hookspecs.adapt_module, LoraConfig(), site).eval()  # type: ignore[union-attr]
    count: int = host.each(hookspecs.check_recipe, draft)  # type: ignore[assignment]
    methods_of(host)["lora"] = LoraConfig  # type: ignore[index]
    host.plugins()[0].error = ""  # type: ignore[misc]
    draft.steps(Module)  # type: ignore[type-var]
    draft.steps(LoraConfig)[0][1].rang  # type: ignore[attr-defined]


# ---------- models and seams ----------


def adapt(model: Transformer, attention: MultiHeadAttention, base: Affine, init: Init) -> None:
    get_peft_model(model, "lora")  # type: ignore[arg-type]
    get_peft_model(model, [LoraConfig])  # type: ignore[list-item]
    get_peft_model(model, LoraConfig(), 1)  # type: ignore[arg-type, call-arg]
    peft = get_peft_model(model, LoraConfig())
    get_peft_model(peft, LoraConfig())  # type: ignore[arg-type]
    peft.recipe[0].r  # type: ignore[attr-defined]
    peft.add_weighted_adapter(["a"], [1.0], "b", combination_type="svd")  # type: ignore[arg-type]
    peft.save_pretrained("folder", layout=None)  # type: ignore[arg-type]
    peft.merge_and_unload().unload()  # type: ignore[attr-defined]
    peft([[1, 2, 3]])  # type: ignore[arg-type]
    peft(np.zeros((1, 3)))  # type: ignore[arg-type]
    attention.q_proj = Embedding(4, 4)  # type: ignore[assignment]
    attention.q_proj.weight  # type: ignore[attr-defined]
    attention.q_prj = base  # type: ignore[attr-defined]
    LoraLinear(Embedding(4, 4), LoraConfig(), "path", None)  # type: ignore[arg-type]
    AttentionAdapter(base, BottleneckAdapterConfig(), 4, init)  # type: ignore[arg-type]
    LayerAdapter(base, BottleneckAdapterConfig(), 4, init)  # type: ignore[arg-type]
    LayerAdapter(base, LoraConfig(), 4, init)  # type: ignore[arg-type]
    TrainedPrefix(attention, init.zeros(4, 8), model.config)  # type: ignore[arg-type]
    SoftPrompt(base, init.zeros(4, 8))  # type: ignore[arg-type]
    model.prompt = model.prefix  # type: ignore[assignment]
    model.prefix = SoftPrompt(model.prompt, init.zeros(4, 8))  # type: ignore[assignment]


# ---------- the conformance suite ----------


class TestWrongly(MethodConformance):
    config = LoraConfig  # type: ignore[assignment]
    mergeable = "no"  # type: ignore[assignment]
    companions = {"lora": "r=2"}  # type: ignore[dict-item]
