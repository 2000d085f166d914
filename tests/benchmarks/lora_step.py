"""One LoRA training step of this library: seconds, memory and loss as one JSON object.

python lora_step.py gpt2|llama|tiny BATCH TOKENS
"""

import json
import resource
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_info

from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.nn.optim import AdamW
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft_lora import LoraConfig

SHAPES = {
    # The peer's dropout is off as well.
    "gpt2": replace(named_shape("gpt2"), hidden_dropout=0.0, attention_dropout=0.0),
    "llama": named_shape("smollm2-135m"),
    "tiny": TransformerConfig(
        model_type="gpt2",
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=1024,
        packed_qkv=True,
    ),
}


def main(shape: str, batch: int, tokens: int) -> None:
    peft = get_peft_model(Transformer(SHAPES[shape]), LoraConfig(r=8, lora_alpha=16))
    peft.train()
    optimizer = AdamW(peft.trainable_parameters(), lr=1e-3)
    ids = np.random.default_rng(0).integers(0, peft.config.vocab_size, (batch, tokens))
    seconds, loss = [], 0.0
    for _ in range(60 if shape == "tiny" else 8):
        start = time.perf_counter()
        value = peft.loss(ids, ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = value.item()
        seconds.append(time.perf_counter() - start)
    result = {
        "seconds": statistics.median(seconds[2:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": loss,
        "kernel": [pool.get("architecture") for pool in threadpool_info()],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
