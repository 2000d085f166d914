"""Write LoRA adapters beside this file as Hugging Face PEFT writes them, with what it computes.

Run it where torch, transformers and PEFT are installed: `python tests/golden/make_lora_golden.py`.
Each folder `lora-*` is what `save_pretrained` writes for one of the golden checkpoints, which its
config names, with expected.npz: token ids, a mask, labels, the logits, the loss, and the gradients
of all that is trained, by the tensors' names.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
LLAMA, BERT = ["q_proj", "down_proj"], ["query", "output.dense"]
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
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


def main() -> None:
    """Write every folder anew."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # PEFT tells of Conv1D, and of embeddings that it writes
    for name, (base, settings) in ADAPTERS.items():
        write(HERE / f"lora-{name}", base, settings)


def write(folder: Path, base: str, settings: dict[str, Any]) -> None:
    """Make an adapter, move all that it trains, save it, and compute with what PEFT reads."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(map(ord, folder.name)))
    task = "SEQ_CLS" if base == "bert-classifier" else "CAUSAL_LM"
    chosen = {"r": 2, "lora_alpha": 3, "task_type": task, **settings}
    model = peft.get_peft_model(loaded(base), peft.LoraConfig(**chosen))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    edit_config(folder / "adapter_config.json", base)
    read = peft.PeftModel.from_pretrained(loaded(base), folder, is_trainable=True).eval()
    np.savez_compressed(folder / "expected.npz", **computed(read, task))


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
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
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
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


if __name__ == "__main__":
    main()
