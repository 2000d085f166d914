"""`tinygrad-peft generate`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.errors import ConfigError

if TYPE_CHECKING:
    from tinygrad_peft.models import Tokenizer
    from tinygrad_peft.nn import TransformerConfig

__all__ = ["generate"]


@command
@options.model
@options.adapter(required=False)
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option(
    "--max-new-tokens", type=int, default=50, show_default=True, help="The most tokens to write."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest share."
)
@options.seed
@options.allow_nonfinite
def generate(
    model: str,
    adapter: Path | None,
    prompt: str,
    *,
    allow_nonfinite: bool,
    **settings: Any,  # noqa: ANN401 - as click gives them
) -> Report:
    """Go on from a prompt."""
    import numpy as np

    from tinygrad_peft.cli.adapted_models import load_adapted
    from tinygrad_peft.cli.sources import adapter_path, model_path
    from tinygrad_peft.cli.tokenizers import tokenizer_of
    from tinygrad_peft.nn import Generation

    generation = Generation(**settings)  # before anything slow
    source = model_path(model)
    adapter = None if adapter is None else adapter_path(adapter)
    tokenizer = tokenizer_of(source, adapter)
    adapted = load_adapted(source, adapter, allow_nonfinite=allow_nonfinite)
    given = _prompt_ids(prompt, tokenizer, model, adapted.config)
    generation = replace(generation, stop_ids=_stop_ids(tokenizer, adapted.config))
    output = adapted.generate(np.array([given]), generation)
    new = [int(token) for token in output[0, len(given) :]]
    text = _completion(tokenizer, given, new)
    values = {"prompt": prompt, "completion": text, "new_tokens": len(new)}
    return Report(values=values, lines=[prompt + text])


def _prompt_ids(
    prompt: str, tokenizer: "Tokenizer", model: str, config: "TransformerConfig"
) -> list[int]:
    """Return the prompt's tokens. Raises ConfigError for a model that cannot go on from them."""
    from tinygrad_peft.cli.examples import check_tokens
    from tinygrad_peft.train.encoding import prompt_ids

    if config.head != "lm":
        kind = "a bare encoder" if config.head == "none" else "a sequence classifier"
        raise ConfigError(f"{model} is {kind}, and only a causal language model generates text")
    given = prompt_ids(prompt, tokenizer)
    if not given:
        raise ConfigError("the prompt is empty")
    check_tokens(given, tokenizer, config)
    return given


def _stop_ids(tokenizer: "Tokenizer", config: "TransformerConfig") -> set[int]:
    """Return the tokens that end a text; a checkpoint's settings may name several."""
    named = config.eos_token_id
    ends = named if isinstance(named, tuple) else (named,)
    known = range(config.vocab_size)  # the model never writes another one
    return {token for token in (*tokenizer.end_ids, *ends) if token in known}


def _completion(tokenizer: "Tokenizer", given: Sequence[int], new: Sequence[int]) -> str:
    """Return the text of the new tokens.

    They are decoded with the prompt: alone, some tokenizers would leave out their first space.
    """
    start = tokenizer.decode(given)
    whole = tokenizer.decode([*given, *new])
    return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(new)
