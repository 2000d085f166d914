"""Write adapters beside this file as Hugging Face PEFT writes them, with what it computes.

Run it where torch, transformers and PEFT are installed: `python tests/golden/make_adapter_golden.py
[NAME ...]` writes those folders anew, or all. Each is what `save_pretrained` writes for one of the
golden checkpoints, which its config names, with expected.npz: token ids, a mask, labels, the
logits, the loss, and the gradients of all that is stored, by the tensors' names.

A further method takes a line in ADAPTERS and nothing else: tests/plugins/test_golden.py finds what
is there.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
LLAMA, BERT = ["q_proj", "down_proj"], ["query", "output.dense"]
LORA: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {r"0\..*": 1},
            "alpha_pattern": {r"1\..*": 1, r".*down_proj": 16},
            "use_rslora": True,
        },
    ),
    "layers": ("gpt2", {"layers_to_transform": 1, "layers_pattern": "h"}),
    "all-biases": ("bert-classifier", {"target_modules": BERT, "bias": "all"}),
    "own-biases": ("gpt2", {"bias": "lora_only", "init_lora_weights": "gaussian"}),
    "lora-bias": ("llama", {"target_modules": LLAMA, "lora_bias": True}),
    "saved-modules": (
        "llama",
        {"target_modules": LLAMA, "modules_to_save": ["lm_head", "model.norm"]},
    ),
    "dora": ("llama", {"target_modules": "all-linear", "use_dora": True}),
    "dora-fused": ("gpt2", {"use_dora": True, "trainable_token_indices": [7, 3]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding-dora": (
        "bert-classifier",
        {"target_modules": ["word_embeddings", *BERT], "use_dora": True},
    ),
    "tokens": ("bert-classifier", {"target_modules": BERT, "trainable_token_indices": [7, 3]}),
    "tokens-of-both": (
        "llama",
        {"target_modules": LLAMA, "trainable_token_indices": {"embed_tokens": [7], "lm_head": [3]}},
    ),
    "orthogonal": ("gpt2", {"init_lora_weights": "orthogonal"}),
    "pissa": ("gpt2", {"init_lora_weights": "pissa", "use_rslora": True}),
    "olora": ("llama", {"target_modules": LLAMA, "init_lora_weights": "olora"}),
}
VIRTUAL = {"num_virtual_tokens": 3}
PROJECTED = {**VIRTUAL, "prefix_projection": True, "encoder_hidden_size": 6}
DRAWN = {"r": 64, "projection_prng_key": 5, "save_projection": False, "d_initial": 1.0}
ADALORA = {"init_r": 4, "target_r": 2, "total_step": 9, "tfinal": 3, "orth_reg_weight": 0.0}
# The folder, the golden checkpoint, PEFT's config and its settings.
ADAPTERS: dict[str, tuple[str, type[peft.PeftConfig], dict[str, Any]]] = {
    **{
        f"lora-{name}": (base, peft.LoraConfig, {"r": 2, "lora_alpha": 3, **settings})
        for name, (base, settings) in LORA.items()
    },
    "adalora-gpt2": ("gpt2", peft.AdaLoraConfig, {**ADALORA, "bias": "lora_only"}),
    "adalora-llama": (
        "llama",
        peft.AdaLoraConfig,
        {
            **ADALORA,
            "target_modules": ["v_proj"],
            "rank_pattern": {
                "model.layers.0.self_attn.v_proj.lora_E": [True, False, True, True],
                "model.layers.1.self_attn.v_proj.lora_E": [False, False, True, False],
            },
        },
    ),
    "adalora-bert": (
        "bert-classifier",
        peft.AdaLoraConfig,
        {**ADALORA, "target_modules": BERT, "lora_alpha": 3},
    ),
    "ia3-gpt2": ("gpt2", peft.IA3Config, {}),
    "ia3-llama": ("llama", peft.IA3Config, {"target_modules": LLAMA}),
    "ia3-bert": ("bert-classifier", peft.IA3Config, {}),
    "ln-tuning-gpt2": ("gpt2", peft.LNTuningConfig, {}),
    "ln-tuning-llama": ("llama", peft.LNTuningConfig, {"target_modules": ["norm"]}),
    "ln-tuning-bert": ("bert-classifier", peft.LNTuningConfig, {"target_modules": ["LayerNorm"]}),
    "prefix-gpt2": ("gpt2", peft.PrefixTuningConfig, VIRTUAL),
    "prefix-llama": ("llama", peft.PrefixTuningConfig, VIRTUAL),
    "prefix-bert": ("bert-classifier", peft.PrefixTuningConfig, VIRTUAL),
    "prefix-projected": ("llama", peft.PrefixTuningConfig, PROJECTED),
    "prompt-gpt2": ("gpt2", peft.PromptTuningConfig, VIRTUAL),
    "prompt-llama": ("llama", peft.PromptTuningConfig, VIRTUAL),
    "prompt-bert": ("bert-classifier", peft.PromptTuningConfig, VIRTUAL),
    "p-tuning-gpt2": ("gpt2", peft.PromptEncoderConfig, VIRTUAL),
    "p-tuning-llama": ("llama", peft.PromptEncoderConfig, VIRTUAL),
    "p-tuning-bert": ("bert-classifier", peft.PromptEncoderConfig, VIRTUAL),
    "vera-gpt2": ("gpt2", peft.VeraConfig, {"r": 3, "bias": "vera_only"}),
    "vera-llama": ("llama", peft.VeraConfig, {"target_modules": "all-linear", **DRAWN}),
    "vera-bert": ("bert-classifier", peft.VeraConfig, {"r": 2, "target_modules": BERT}),
}


def main(names: list[str]) -> None:
    """Write the folders of these names anew, or all."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # PEFT tells of Conv1D, and of embeddings that it writes
    for name in names or ADAPTERS:
        write(HERE / name, *ADAPTERS[name])


def write(folder: Path, base: str, kind: type[peft.PeftConfig], settings: dict[str, Any]) -> None:
    """Make an adapter, move all that it trains, save it, and compute with what PEFT reads."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(map(ord, folder.name)))
    task = "SEQ_CLS" if base == "bert-classifier" else "CAUSAL_LM"
    model = peft.get_peft_model(loaded(base), kind(task_type=task, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    edit_config(folder / "adapter_config.json", base)
    np.savez_compressed(folder / "expected.npz", **computed(read(folder, base), task))


def read(folder: Path, base: str) -> Any:  # noqa: ANN401 - PEFT's models have no common type
    """The adapter as PEFT reads it, to be trained on."""
    values = json.loads((folder / "adapter_config.json").read_text())
    if "num_virtual_tokens" not in values:
        return peft.PeftModel.from_pretrained(loaded(base), folder, is_trainable=True).eval()
    # PEFT trains no prompt that it has read; what it computes with are the stored vectors.
    model = peft.PeftModel.from_pretrained(loaded(base), folder).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "prompt_encoder." in name or ".modules_to_save." in name
    return model


def loaded(base: str) -> Any:  # noqa: ANN401 - transformers' models have no common type
    """A golden checkpoint as transformers reads it."""
    kinds = {
        "gpt2": transformers.GPT2LMHeadModel,
        "llama": transformers.LlamaForCausalLM,
        "bert-classifier": transformers.BertForSequenceClassification,
    }
    return kinds[base].from_pretrained(HERE / base, dtype=torch.float32)


def edit_config(path: Path, base: str) -> None:
    """Name the base by its folder, and list the targets, which PEFT has as a set, in one order."""
    values = json.loads(path.read_text())
    values["base_model_name_or_path"] = base
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(values.get(name), list):
            values[name].sort()
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def computed(model: Any, task: str) -> dict[str, Any]:  # noqa: ANN401
    """What is computed from one batch with padding."""
    ids = np.random.default_rng(0).integers(8, 60, (2, 6))
    ids[0, 1:3] = 7, 3
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    labels = np.array([2, 0]) if task == "SEQ_CLS" else np.where(mask, ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    found = model(**{name: torch.tensor(array) for name, array in batch.items()})
    found.loss.backward()
    gradients = {
        stored_name(name): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".original_module." not in name
    }
    return {
        **batch,
        "logits": found.logits.detach().numpy(),
        "loss": found.loss.detach().numpy(),
        **gradients,
    }


def stored_name(name: str) -> str:
    """A parameter's name in a file."""
    for part in (".modules_to_save.default", ".default"):
        name = name.replace(part, "")
    name = name.replace("prompt_encoder.embedding.weight", "prompt_embeddings")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


if __name__ == "__main__":
    main(sys.argv[1:])
