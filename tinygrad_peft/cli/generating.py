"""`tinygrad-peft generate`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.cli.loading import load_adapted
from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models.tokenizer import load_tokenizer

__all__ = ["Sampling", "generate_text"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


def generate_text(
    model: str, adapter: Path | None, prompt: str, sampling: Sampling, *, as_json: bool
) -> None:
    """Print the prompt and what the model makes of it."""
    tokenizer = load_tokenizer(model_path(model))
    adapted = load_adapted(model, adapter)
    if adapted.config.head != "lm":
        raise ConfigError("only a causal language model generates text")
    ids = np.array([tokenizer.encode(prompt)])
    if not ids.size:
        raise ConfigError("the prompt is empty")
    stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    output = adapted.generate(
        ids,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop_ids=stop,
    )
    new = [int(i) for i in output[0, ids.shape[1] :]]
    text = tokenizer.decode(new)
    emit(
        {"prompt": prompt, "completion": text, "new_tokens": len(new)},
        [prompt + text],
        as_json=as_json,
    )
