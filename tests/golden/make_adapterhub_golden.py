"""Write bottleneck adapters beside this file as AdapterHub writes them, with what it computes.

Run it where AdapterHub's adapters 1.3 and its torch and transformers are installed:
`python tests/golden/make_adapterhub_golden.py`. Each folder `adapterhub-*` is what `save_adapter`
writes for the golden checkpoint that its `model_name` names, with expected.npz: token ids, a mask,
the logits or hidden states, and the gradients of Σ sin of them, one behind the other in the order
of the names.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
import transformers
from adapters import BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig

HERE = Path(__file__).parent
KINDS: dict[str, BnConfig] = {
    "seq": SeqBnConfig(reduction_factor=4),
    "double": DoubleSeqBnConfig(reduction_factor=8),
    "par": ParBnConfig(reduction_factor=4),
}
ADAPTERS = [(base, kind, KINDS[kind]) for base in ("gpt2", "llama", "bert") for kind in KINDS]
ADAPTERS += [
    ("bert-classifier", "seq", SeqBnConfig(reduction_factor=4)),
    (
        "bert",
        "more",
        SeqBnConfig(
            mh_adapter=True,
            non_linearity="gelu_new",
            reduction_factor={"0": 3, "default": 5.0},
            leave_out=[0],
            scaling=0.5,
            dropout=0.1,
        ),
    ),
]
MODELS = {
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "bert": transformers.BertModel,
    "bert-classifier": transformers.BertForSequenceClassification,
}


def main() -> None:
    """Write every folder anew."""
    transformers.logging.set_verbosity_error()
    for base, kind, config in ADAPTERS:
        write(HERE / f"adapterhub-{base}-{kind}", base, config)


def write(folder: Path, base: str, config: BnConfig) -> None:
    """Make an adapter with weights drawn at random, save it, and compute with what was saved."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(map(ord, folder.name)))
    model = loaded(base)
    model.add_adapter("task", config=config)
    model.set_active_adapters("task")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters.task." in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    model.save_adapter(folder, "task", with_head=False, use_safetensors=True)
    settings = folder / "adapter_config.json"
    values = json.loads(settings.read_text()) | {"model_name": base}
    settings.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    read = loaded(base)
    read.load_adapter(str(folder), set_active=True, use_safetensors=True)
    np.savez_compressed(folder / "expected.npz", **computed(read))


def loaded(base: str) -> Any:  # noqa: ANN401 - transformers' models have no common type
    """A golden checkpoint as transformers reads it, ready for adapters."""
    model = MODELS[base].from_pretrained(HERE / base, dtype=torch.float32)
    adapters.init(model)
    return model.eval()


def computed(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """Compute the expected values from one batch with padding."""
    ids = np.random.default_rng(0).integers(8, 60, (2, 6))
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    trained = sorted((n, p) for n, p in model.named_parameters() if ".adapters.task." in n)
    found = model(torch.tensor(ids), attention_mask=torch.tensor(mask))
    output = found.logits if hasattr(found, "logits") else found.last_hidden_state
    gradients = torch.autograd.grad(output.sin().sum(), [parameter for _, parameter in trained])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "logits": output.detach().numpy(),
        "gradients": torch.cat([gradient.flatten() for gradient in gradients]).numpy(),
    }


if __name__ == "__main__":
    main()
