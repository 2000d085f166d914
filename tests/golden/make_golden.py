"""Write the golden checkpoints beside this file: small models with weights drawn at random.

Run it where torch and transformers are installed: `python tests/golden/make_golden.py`. Each folder
is what `save_pretrained` writes, or what older files look like, with expected.npz: token ids, an
attention mask, and what transformers computes from them in float32.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

HERE = Path(__file__).parent
Rename = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24}
GPT2_TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
LLAMA = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LABELS = {0: "bad", 1: "good", 2: "mixed"}


def main() -> None:
    """Write every folder anew."""
    transformers.logging.set_verbosity_error()
    gpt2, llama, bert = GPT2 | GPT2_TOKENS, LLAMA, BERT
    write("gpt2", GPT2LMHeadModel(GPT2Config(**gpt2)))
    write("gpt2-sharded", GPT2LMHeadModel(GPT2Config(**gpt2, n_inner=24)), shard="10KB")
    write("gpt2-old", GPT2LMHeadModel(GPT2Config(**gpt2)).half(), rename=old_gpt2)
    write("llama", LlamaForCausalLM(LlamaConfig(**llama)))
    tied = {"tie_word_embeddings": True}
    write("llama3-tied", LlamaForCausalLM(LlamaConfig(**llama, **tied, rope_parameters=LLAMA3)))
    linear = LlamaConfig(
        **llama,
        head_dim=6,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
    )
    older = {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    write("llama-linear", LlamaForCausalLM(linear).bfloat16(), older=older)
    write("bert", BertModel(BertConfig(**bert)), rename=with_position_ids)
    write("bert-no-pooler", BertModel(BertConfig(**bert), add_pooling_layer=False))
    write("bert-pretraining", BertForPreTraining(BertConfig(**bert)), rename=old_bert)
    labels = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    write("bert-classifier", BertForSequenceClassification(BertConfig(**bert, **labels)))
    write_classifier("gpt2", GPT2ForSequenceClassification)
    write_classifier("llama", LlamaForSequenceClassification)


def write(
    name: str,
    model: PreTrainedModel,
    *,
    rename: Rename | None = None,
    shard: str = "1GB",
    older: Mapping[str, object] | None = None,
) -> None:
    """Save a model with drawn weights, and what transformers computes when it loads that.

    `older` are the keys of config.json from before transformers 5, in place of today's.
    """
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(map(ord, name)))
    redraw(model)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if rename is not None:
        file = folder / "model.safetensors"
        save_file(rename(load_file(file)), file, metadata={"format": "pt"})
    if older is not None:
        file = folder / "config.json"
        config = json.loads(file.read_text()) | older
        config.pop("rope_parameters")
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    loaded = type(model).from_pretrained(folder, dtype=torch.float32)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, (3, 20))
    mask = np.ones_like(ids)
    mask[1, 13:], mask[2, 1:] = 0, 0
    np.savez_compressed(
        folder / "expected.npz", ids=ids, mask=mask, output=output(loaded, ids, mask)
    )


@torch.no_grad()
def write_classifier(name: str, kind: type[PreTrainedModel]) -> None:
    """Save a classifier's weight on a language model's checkpoint, and what it computes."""
    torch.manual_seed(0)
    model: Any = kind.from_pretrained(HERE / name, num_labels=3, pad_token_id=0)
    model.score.weight.copy_(0.3 * torch.randn(model.score.weight.shape))
    with np.load(HERE / name / "expected.npz") as stored:
        ids, mask = stored["ids"], stored["mask"]
    ids = np.where(mask, ids, 0)  # only the ids tell padding
    np.savez_compressed(
        HERE / name / "classifier.npz",
        weight=model.score.weight.numpy(),
        output=output(model, ids, mask),
    )


@torch.no_grad()
def redraw(model: PreTrainedModel) -> None:
    """Weights large enough that a mistake anywhere shows in the output."""
    for name, parameter in model.named_parameters():
        drawn = 0.3 * torch.randn(parameter.shape)
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + drawn if is_scale else drawn)


@torch.no_grad()
def output(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits, or the hidden states of an encoder, in float32."""
    model = model.eval()
    body = model.bert if isinstance(model, BertForPreTraining) else model
    computed: Any = body(torch.tensor(ids), attention_mask=torch.tensor(mask))
    return (computed.logits if "logits" in computed else computed.last_hidden_state).numpy()


def old_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """No prefix, and the causal masks as buffers, as in the file that OpenAI's weights came in."""
    named = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    mask = torch.ones(24, 24).tril().view(1, 1, 24, 24)
    buffers = {"bias": mask, "masked_bias": torch.tensor(-1e4)}
    for layer in range(2):
        named |= {f"h.{layer}.attn.{k}": v.clone() for k, v in buffers.items()}
    return named


def with_position_ids(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The integers that older versions saved with the weights."""
    return tensors | {"embeddings.position_ids": torch.arange(24)[None]}


def old_bert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Norms with gamma and beta, as in the files that were converted from TensorFlow."""
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    named = {}
    for key, tensor in tensors.items():
        stem, _, last = key.rpartition("LayerNorm.")
        named[stem + older[f"LayerNorm.{last}"] if stem else key] = tensor
    return named


if __name__ == "__main__":
    main()
