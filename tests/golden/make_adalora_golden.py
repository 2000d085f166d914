"""Train Hugging Face PEFT's AdaLoRA on a golden checkpoint, and write what it did.

Run it where torch, transformers and PEFT are installed, as a module of the checkout's:
`python -m tests.golden.make_adalora_golden`. It writes adalora-run/ beside this file anew: the
settings as PEFT saves them in the end, and run.npz, by name and step: the tensors before and after
all steps, the ids of each step, the loss with its penalty, and the triplets that are left after it.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from tests.golden.make_adapter_golden import edit_config, loaded

FOLDER = Path(__file__).parent / "adalora-run"
BASE = "gpt2"
STEPS = 12
SETTINGS: dict[str, Any] = {
    "init_r": 4,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
    "beta1": 0.7,
    "beta2": 0.6,
    "orth_reg_weight": 0.1,
    "total_step": STEPS,
    "lora_alpha": 16,
    "target_modules": ["c_attn", "c_fc", "mlp.c_proj"],
}
LR = 0.05


def main() -> None:
    """Train, and write."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = peft.get_peft_model(loaded(BASE), peft.AdaLoraConfig(task_type="CAUSAL_LM", **SETTINGS))
    model = model.double().eval()  # without the dropout of the base
    model.get_base_model().loss_function = cross_entropy  # transformers' own is in float32
    found: dict[str, Any] = {f"start.{name}": array for name, array in tensors(model).items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    rng = np.random.default_rng(0)
    last = STEPS - SETTINGS["tfinal"]
    for step in range(1, last + 1):
        ids = rng.integers(8, 60, (3, 7))
        loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        found[f"ids.{step}"], found[f"loss.{step}"] = ids, loss.detach().numpy()
        kept = [e[:, 0] != 0 for name, e in sorted(tensors(model).items()) if "lora_E" in name]
        found[f"kept.{step}"] = np.array(kept)
    found |= {f"end.{name}": array for name, array in tensors(model).items()}
    shutil.rmtree(FOLDER, ignore_errors=True)
    model.float().save_pretrained(FOLDER)
    for name in ("README.md", "adapter_model.safetensors"):
        (FOLDER / name).unlink()
    edit_config(FOLDER / "adapter_config.json", BASE)
    np.savez_compressed(FOLDER / "run.npz", **found)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, **_: object) -> torch.Tensor:
    """The mean over all tokens but the first, in the dtype of the logits."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401
    """A, E and B of all layers by their names in a file."""
    return {
        name.removesuffix(".default"): parameter.detach().numpy().copy()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


if __name__ == "__main__":
    main()
