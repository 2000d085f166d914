"""`tinygrad-peft generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.cli.loading import check_tokens, load_adapted
from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models.tokenizer import Tokenizer, load_tokenizer
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.train.encoding import prompt_ids

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
    source = model_path(model)
    tokenizer = load_tokenizer(source)
    adapted = load_adapted(source, adapter)
    if adapted.config.head != "lm":
        kind = "a bare encoder" if adapted.config.head == "none" else "a sequence classifier"
        raise ConfigError(f"{model} is {kind}, and only a causal language model generates text")
    given = prompt_ids(prompt, tokenizer)
    if not given:
        raise ConfigError("the prompt is empty")
    check_tokens(given, tokenizer, adapted.config)
    output = adapted.generate(
        np.array([given]),
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop_ids=_stop_ids(tokenizer, adapted.config),
    )
    new = [int(token) for token in output[0, len(given) :]]
    text = _completion(tokenizer, given, new)
    emit(
        {"prompt": prompt, "completion": text, "new_tokens": len(new)},
        [prompt + text],
        as_json=as_json,
    )


def _stop_ids(tokenizer: Tokenizer, config: TransformerConfig) -> set[int]:
    """The tokens that end a text, of which a checkpoint's config may name several."""
    named = config.eos_token_id
    ends = {tokenizer.eos_id, *(named if isinstance(named, tuple) else (named,))}
    return {token for token in ends if token is not None}


def _completion(tokenizer: Tokenizer, given: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens; alone, some tokenizers would leave out its first space."""
    start = tokenizer.decode(given)
    whole = tokenizer.decode([*given, *new])
    return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(new)
