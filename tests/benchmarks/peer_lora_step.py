"""The same step with torch, transformers and PEFT: seconds, memory and loss as one JSON object.

python peer_lora_step.py gpt2|llama|tiny BATCH TOKENS
"""

import json
import resource
import statistics
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def base(shape: str) -> torch.nn.Module:
    if shape == "llama":
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config)
    tiny = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 256} if shape == "tiny" else {}
    return GPT2LMHeadModel(GPT2Config(**NO_DROPOUT, **tiny))


def main(shape: str, batch: int, tokens: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    targets = ["q_proj", "v_proj"] if shape == "llama" else ["c_attn"]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, fan_in_fan_out=shape != "llama")
    model = get_peft_model(base(shape), lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    ids = torch.randint(0, model.config.vocab_size, (batch, tokens))
    seconds, last = [], 0.0
    for _ in range(60 if shape == "tiny" else 8):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
        seconds.append(time.perf_counter() - start)
    result = {
        "seconds": statistics.median(seconds[2:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": last,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
