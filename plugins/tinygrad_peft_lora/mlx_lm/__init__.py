"""LoRA as mlx-lm reads and writes it (mlx_lm 0.32: tuner/utils.py, lora.py, dora.py).

    y = W₀ x + s (x a) b        a (in, r) = Aᵀ, b (r, out) = Bᵀ, s the `scale` itself, not over r

`fine_tune_type` is "lora" or "dora", whose magnitudes are m (out,). `keys` names the adapted places
by their paths within a layer, in the last `num_layers` layers (in all of them where it is 0 or
less), or by their whole paths anywhere. Without `keys` they are the places that the file has.
Settings of the training run, which mlx-lm does not read again, are ignored.
"""

from tinygrad_peft_lora.mlx_lm.layout import MLX_LM
from tinygrad_peft_lora.mlx_lm.read import read_mlx_lm
from tinygrad_peft_lora.mlx_lm.write import write_mlx_lm

__all__ = ["MLX_LM", "read_mlx_lm", "write_mlx_lm"]
