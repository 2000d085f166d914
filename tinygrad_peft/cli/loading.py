"""Models with their adapters, and data for them, as commands name them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygrad_peft.cli.fetching import adapter_path, data_path, model_path
from tinygrad_peft.errors import CheckpointError, ConfigError, DataError, TokenError
from tinygrad_peft.models import Tokenizer, load_model
from tinygrad_peft.nn import Skeleton, Transformer, TransformerConfig
from tinygrad_peft.peft import DEFAULT, AdapterFolder, Head, Host, PeftModel, raise_problems
from tinygrad_peft.train.encoding import EncodedData, encode_examples
from tinygrad_peft.train.examples import Example, Task, read_examples

__all__ = [
    "Examples",
    "check_tokens",
    "load_adapted",
    "load_base",
    "load_told",
    "read_folder",
    "task_of",
]


@dataclass(frozen=True)
class Examples:
    """What a data file holds."""

    path: Path
    rows: Sequence[Example]

    @classmethod
    def read(cls, data: str, part: str, task: Task) -> "Examples":
        """The examples of a path, or of a part ("train", "test") of a fetched data set."""
        path = data_path(data, part)
        return cls(path, read_examples(path, task))

    def encoded(
        self, tokenizer: Tokenizer, max_length: int, model: TransformerConfig
    ) -> EncodedData:
        """The examples as token ids and labels.

        Raises, with the file's path:
            DataError: labels that the model does not know, and texts without a token.
            TokenError: more tokens than the model takes, or tokens that it does not have.
        """
        try:
            encoded = encode_examples(self.rows, tokenizer, max_length, model.label_names)
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


def load_base(model: str | Path) -> Transformer:
    """The model of a path, or of a name."""
    return load_model(model if isinstance(model, Path) else model_path(model))


def load_adapted(
    model: str | Path,
    adapter: Path | AdapterFolder | None,
    host: Host | None = None,
    *,
    name: str = DEFAULT,
) -> Transformer | PeftModel:
    """The model with an adapter applied, and with the head that it was trained with.

    `name` is what the adapter is called in it.
    """
    base = load_base(model)
    if adapter is None:
        return base
    folder = adapter
    if not isinstance(folder, AdapterFolder):
        folder = AdapterFolder.read(adapter_path(folder), host)
    head = folder.head()
    if head is not None and head != _head_of(base):
        base.with_classifier(head.label_names or head.num_labels, pooling=head.pooling)
    peft = PeftModel.from_pretrained(base, folder, adapter_name=name)
    peft.release_base()
    return peft


def load_told(
    adapter: Path | AdapterFolder, model: str | None, *, name: str = DEFAULT
) -> PeftModel:
    """Load an adapter in its model, or in the shapes alone of the one that its folder describes.

    Raises CheckpointError where no model is named and the folder describes none.
    """
    if model is not None:
        adapted = load_adapted(model, adapter, name=name)
        assert isinstance(adapted, PeftModel)
        return adapted
    folder = adapter if isinstance(adapter, AdapterFolder) else read_folder(adapter)
    if folder.base is None:
        raise CheckpointError(f"{folder.path} does not describe its model: name the --model")
    return PeftModel.from_pretrained(
        Transformer(folder.base, Skeleton()), folder, adapter_name=name
    )


def read_folder(adapter: Path) -> AdapterFolder:
    """Return an adapter's folder. Raises CheckpointError for one that is not an adapter's."""
    folder = AdapterFolder.read(adapter)
    raise_problems(adapter, folder.problems)
    return folder


def _head_of(model: Transformer) -> Head | None:
    config = model.config
    if model.classifier is None:
        return None
    return Head(config.num_labels, config.pooling, config.label_names)


def task_of(model: Transformer | PeftModel) -> Task:
    """What a model is for. Raises ConfigError for a bare encoder."""
    head = model.config.head
    if head == "none":
        raise ConfigError(
            "a bare encoder has nothing to evaluate: name the --adapter with its head"
        )
    return "causal-lm" if head == "lm" else "sequence-classification"
