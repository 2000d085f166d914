"""Small models of each family, and plugins, that the tests of recipes share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

import tinygrad_peft_lora.plugin
from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.nn import (
    Affine,
    Block,
    Init,
    Module,
    Parameter,
    Transformer,
    TransformerConfig,
)
from tinygrad_peft.peft import (
    AdapterFolder,
    ForeignName,
    Host,
    PeftConfig,
    PeftModel,
    Site,
    TargetedConfig,
    hookimpl,
    hookspecs,
)
from tinygrad_peft.peft.storage.foreign import foreign_places, read_foreign
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.testing import SMALL_MODELS

GPT2, _LLAMA, BERT_CLASSIFIER = (
    replace(SMALL_MODELS[family], vocab_size=50, max_position_embeddings=24)
    for family in ("gpt2", "llama", "bert")
)
LLAMA = replace(_LLAMA, num_hidden_layers=3)
BERT = replace(BERT_CLASSIFIER, head="none", num_labels=0)
FAMILIES: Mapping[str, TransformerConfig] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "bert": BERT_CLASSIFIER,
}
IDS: IntArray = np.array([[3, 14, 15, 9, 2], [6, 5, 35, 8, 49]])


def small(config: TransformerConfig = LLAMA, dtype: type[np.floating] = np.float32) -> Transformer:
    """A model with weights and biases that are all drawn at random, in evaluation mode."""
    model = Transformer(config, Init(1, dtype))
    rng = np.random.default_rng(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = rng.normal(0, 0.1, parameter.shape).astype(dtype)
    model.eval()
    return model


def block_of(model: Transformer, layer: int = 0) -> Block:
    """The block of a layer that no method has wrapped whole."""
    block = model.blocks[layer]
    assert isinstance(block, Block)
    return block


def lora_host() -> Host:
    """A host with LoRA and nothing else."""
    host = Host()
    host.register(tinygrad_peft_lora.plugin, "lora")
    return host


def logits(model: Transformer | PeftModel) -> Array:
    """The model's logits for the same few tokens."""
    with no_grad():
        return model(IDS).data


def foreign_parameters(model: PeftModel, directory: Path) -> Mapping[ForeignName, Parameter]:
    """The weights of an adapter of one step, by their names in another library's folder."""
    (step,) = AdapterFolder.read(directory, model.host).steps
    return foreign_places(model.record, 0, read_foreign(step, model.host, model.config))


def shake(model: PeftModel, seed: int = 0) -> None:
    """Give all that is trained other values, as an optimiser would."""
    rng = np.random.default_rng(seed)
    for parameter in model.trainable_parameters():
        parameter.data = parameter.data + rng.normal(0, 0.1, parameter.shape).astype(
            parameter.dtype
        )


@dataclass(frozen=True)
class Snapshot:
    """A model's modules, its arrays and their values, and the trained ones among them."""

    modules: list[tuple[str, int]]
    weights: list[tuple[str, int, bool]]
    values: list[Array]

    @classmethod
    def of(cls, model: Module) -> "Snapshot":
        named = list(model.named_parameters())
        return cls(
            [(path, id(module)) for path, module in model.named_modules()],
            [(name, id(p), p.requires_grad) for name, p in named],
            [p.data.copy() for _, p in named],
        )

    def assert_unchanged(self, model: Module) -> None:
        now = Snapshot.of(model)
        assert now.modules == self.modules
        assert now.weights == self.weights
        for old, new in zip(self.values, now.values, strict=True):
            np.testing.assert_array_equal(old, new)


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(TargetedConfig):
    """A method that adds a trained number to what a module gives: it starts at `start`."""

    peft_type: ClassVar[str] = "SHIFT"
    usual_targets: ClassVar[Mapping[str, tuple[str, ...]]] = {"llama": ("o_proj",)}
    start: float = 0.0


class ShiftLinear(Module):
    base_layer: Affine

    def __init__(self, base: Affine, start: float, init: Init) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_layer = base
        self.shift = Parameter(init.ones() * start)

    def __call__(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.shift


def shift(config: PeftConfig, site: Site) -> Module | None:
    """ShiftConfig's answer to adapt_module."""
    if isinstance(config, ShiftConfig) and site.is_target and isinstance(site.module, Affine):
        return ShiftLinear(site.module, config.start, site.init)
    return None


def plugin(
    *methods: type[PeftConfig],
    adapt: Callable[[PeftConfig, Site], Module | None] | None = None,
    merge: Callable[[Module], Module | None] | None = None,
    **hooks: object,
) -> object:
    """A plugin that provides methods, adapts and merges, and answers hooks that are marked."""

    def peft_methods() -> Sequence[type[PeftConfig]]:
        return methods

    made = SimpleNamespace(peft_methods=hookimpl(hookspecs.peft_methods)(peft_methods), **hooks)
    if adapt is not None:
        answer = adapt

        def adapt_module(config: PeftConfig, site: Site) -> Module | None:
            return answer(config, site)

        made.adapt_module = hookimpl(hookspecs.adapt_module)(adapt_module)
    if merge is not None:
        fold = merge

        def merge_module(module: Module) -> Module | None:
            return fold(module)

        made.merge_module = hookimpl(hookspecs.merge_module)(merge_module)
    return made
