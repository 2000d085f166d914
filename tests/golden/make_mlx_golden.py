"""Write LoRA adapters beside this file as mlx-lm writes them, with what it computes.

Run it where mlx and mlx-lm 0.32 are installed: `python tests/golden/make_mlx_golden.py`. Each
folder `mlx-*` is what `mlx_lm.lora` leaves for the golden checkpoint that its `model` names: all
settings of the run, and the trained tensors; with expected.npz: token ids and the logits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.lora import CONFIG_DEFAULTS
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config

HERE = Path(__file__).parent
QUERIES = ["self_attn.q_proj", "self_attn.v_proj"]
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("llama", {"num_layers": 1}, {"keys": QUERIES}),
    "dora": ("llama", {"num_layers": -1, "fine_tune_type": "dora"}, {"keys": QUERIES}),
    "linear": ("llama", {"num_layers": 16}, {"dropout": 0.1}),
    "paths": ("llama", {"num_layers": 1}, {"keys": [*QUERIES, "lm_head", "model.embed_tokens"]}),
    "gpt2": ("gpt2-old", {"num_layers": 1}, {"keys": ["attn.c_attn", "model.h.0.mlp.c_fc"]}),
}


def main() -> None:
    """Write every folder anew."""
    for name, (base, settings, parameters) in ADAPTERS.items():
        write(HERE / f"mlx-{name}", base, settings, parameters)


def write(folder: Path, base: str, settings: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Make an adapter, move all that it trains, save it, and compute with what was saved."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mx.random.seed(sum(map(ord, folder.name)))
    own = {"rank": 2, "dropout": 0.0, "scale": 1.7, **parameters}
    config = {**CONFIG_DEFAULTS, "model": base, "lora_parameters": own, **settings}
    model = loaded(base)
    model.freeze()
    dora = config["fine_tune_type"] == "dora"
    linear_to_lora_layers(model, config["num_layers"], own, use_dora=dora)
    trained = dict(tree_flatten(model.trainable_parameters()))
    moved = {name: array + 0.3 * mx.random.normal(array.shape) for name, array in trained.items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), moved)
    save_config(config, folder / "adapter_config.json")
    read = load_adapters(loaded(base), str(folder)).eval()
    ids = np.random.default_rng(0).integers(8, 60, (2, 6))
    logits = np.array(read(mx.array(ids)))
    np.savez_compressed(folder / "expected.npz", input_ids=ids, logits=logits)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")


def loaded(base: str) -> Any:  # noqa: ANN401 - mlx-lm's models have no common type
    """A golden checkpoint as mlx-lm reads it: of GPT-2's it knows the old names, and n_ctx."""
    settings = {"n_ctx": 24} if base == "gpt2-old" else {}
    model, _ = load_model(HERE / base, strict=not settings, model_config=settings)
    model.set_dtype(mx.float32)
    return model


if __name__ == "__main__":
    main()
