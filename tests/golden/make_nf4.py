"""Write nf4/bitsandbytes.safetensors: what bitsandbytes makes of weights drawn at random.

Run it where torch and bitsandbytes are installed: `python tests/golden/make_nf4.py`. For each case
there is a weight, the codes and the absmax that `quantize_4bit` gives, and the block size in the
metadata; `scales` are quantised by `quantize_blockwise`, as double quantisation does it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional as bnb
from safetensors.numpy import save_file

CASES = [
    ((1, 1), 64),
    ((1, 63), 64),
    ((2, 32), 64),
    ((1, 65), 64),
    ((3, 7), 32),
    ((16, 16), 64),
    ((5, 129), 128),
    ((33, 65), 32),
    ((64, 33), 64),
    ((41, 101), 4096),
]


def main() -> None:
    """Write the file anew."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for case, (shape, block_size) in enumerate(CASES):
        weight = rng.normal(0, 0.02, shape).astype(np.float32)
        if case == 8:
            weight[:5] = 0  # blocks of zeros
            weight[20] *= 100
        codes, state = bnb.quantize_4bit(
            torch.from_numpy(weight), blocksize=block_size, quant_type="nf4"
        )
        arrays |= {
            f"{case}.weight": weight,
            f"{case}.codes": codes.numpy().reshape(-1),
            f"{case}.absmax": state.absmax.numpy(),
        }
    scales = rng.gamma(20, 0.003, 700).astype(np.float32)
    offset = scales.mean(dtype=np.float64).astype(np.float32)
    codes, state = bnb.quantize_blockwise(torch.from_numpy(scales - offset), blocksize=256)
    arrays |= {"scales": scales, "scales.codes": codes.numpy()}
    arrays |= {"scales.absmax": state.absmax.numpy(), "scales.map": state.code.numpy()}
    sizes = json.dumps([block_size for _, block_size in CASES])
    folder = Path(__file__).parent / "nf4"
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "bitsandbytes.safetensors", {"block_sizes": sizes})


if __name__ == "__main__":
    main()
