"""Examples of a data file, and their token ids."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygrad_peft.cli.sources import data_path
from tinygrad_peft.errors import ConfigError, DataError, TokenError
from tinygrad_peft.models import Tokenizer
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.train.encoding import EncodedData, encode_examples
from tinygrad_peft.train.examples import Example, Task, read_examples
from tinygrad_peft.train.label_matching import class_names

__all__ = ["Examples", "check_tokens", "token_limit"]


@dataclass(frozen=True)
class Examples:
    """The rows of a data file."""

    path: Path
    rows: Sequence[Example]

    @classmethod
    def read(cls, data: str, part: str, task: Task) -> "Examples":
        """Read a path, or a part ("train", "test") of a fetched data set."""
        path = data_path(data, part)
        return cls(path, read_examples(path, task))

    def encoded(
        self, tokenizer: Tokenizer, max_length: int, model: TransformerConfig
    ) -> EncodedData:
        """Return the examples as token ids and labels, and log the number of those that were cut.

        Raises, with the file's path:
            DataError: labels that the model does not know, or texts without a token.
            TokenError: more tokens than the model has positions, or tokens that it does not have.
        """
        try:
            names = class_names(model.label_names, model.num_labels)
            where = f"{self.path}: "
            encoded = encode_examples(self.rows, tokenizer, max_length, names, where=where)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        self._check_lengths(encoded, model.max_position_embeddings)
        tokens = {token for row in encoded for token in row.input_ids}
        check_tokens(tokens, tokenizer, model, where=f"{self.path}: ")
        return encoded

    def _check_lengths(self, encoded: EncodedData, limit: int) -> None:
        long = sum(len(row.input_ids) > limit for row in encoded)
        if long:
            raise TokenError(
                f"{self.path}: {long} of {len(encoded)} examples have more tokens than the "
                f"model's {limit} positions: use --max-length {limit}"
            )


def token_limit(
    asked: int | None, tokenizer: Tokenizer, model: TransformerConfig, virtual: int = 0
) -> int:
    """Return --max-length, or else the most tokens that the model and its tokenizer are made for.

    `virtual` tokens take positions too. Raises ConfigError if `asked` is less than 1.
    """
    if asked is not None:
        if asked < 1:
            raise ConfigError(f"--max-length: expected at least 1, got {asked}")
        return asked
    positions = max(model.max_position_embeddings - virtual, 1)
    positions = min(positions, model.max_seq_length or positions)
    return min(positions, tokenizer.model_max_length or positions)


def check_tokens(
    tokens: Collection[int], tokenizer: Tokenizer, model: TransformerConfig, where: str = ""
) -> None:
    """Raise TokenError for tokens that the model does not have."""
    largest, size = max(tokens, default=0), model.vocab_size
    if largest >= size:
        raise TokenError(
            f"{where}the tokenizer gives token {largest}, and the model has {size} tokens "
            f"(0..{size - 1}): the tokenizer ({tokenizer.vocab_size} tokens) belongs to another "
            "model"
        )
