"""The number of LoRA's parameters, from sizes alone."""

from tinygrad_peft.peft import ModelShape, ParameterCount, bias_elements
from tinygrad_peft_lora.config import LoraConfig
from tinygrad_peft_lora.tokens import trained_ids

__all__ = ["count_lora"]


def count_lora(config: LoraConfig, shape: ModelShape) -> ParameterCount:
    """Σ r (in + out) over the targets, and what the options add to it.

    DoRA adds a magnitude for each output, `lora_bias` a bias. PiSSA and OLoRA keep A₀ and B₀ beside
    A and B, frozen.
    """
    factors = sum(config.rank(t.path) * (t.in_features + t.out_features) for t in shape.targets)
    per_output = sum(t.out_features for t in shape.targets)
    for table in shape.embeddings:
        if table.is_target:
            factors += config.rank(table.path) * (table.num_embeddings + table.embedding_dim)
            per_output += table.embedding_dim
    added = factors + _token_elements(config, shape)
    added += per_output if config.use_dora or config.lora_bias else 0
    start = factors if config.leaves_residual else 0
    trainable = added + bias_elements(config.bias, shape)
    return ParameterCount(trainable=trainable, added=added + start)


def _token_elements(config: LoraConfig, shape: ModelShape) -> int:
    """Count the vectors of trained tokens; a tied output layer shares its embedding's."""
    elements = sum(
        len(trained_ids(config, table.path, table.slot)) * table.embedding_dim
        for table in shape.embeddings
    )
    if shape.head is None or any(table.tied for table in shape.embeddings):
        return elements
    ids = trained_ids(config, shape.head.path, "lm_head")
    return elements + len(ids) * shape.head.in_features
