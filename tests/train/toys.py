"""Tiny models and tasks that they can learn, for the tests of training."""

from pathlib import Path

import numpy as np

from tinygrad_peft.nn import Init, Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftModel, get_peft_model
from tinygrad_peft.train import Event, Observer, StepEnded
from tinygrad_peft.train.best_weights import Save
from tinygrad_peft.train.encoding import Encoded, EncodedData
from tinygrad_peft_lora import LoraConfig

VOCAB = 12
NEEDLE = 3


def classifier(*, dropout: float = 0.0, dtype: type[np.floating] = np.float32) -> Transformer:
    """A bidirectional model that sorts texts into two classes."""
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        norm_position="post",
        causal=False,
        head="classification",
        num_labels=2,
        pooling="mean",
        hidden_dropout=dropout,
    )
    return Transformer(config, Init(1, dtype))


def language_model(*, dtype: type[np.floating] = np.float32) -> Transformer:
    """A causal model with rotary positions."""
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        positions="rotary",
    )
    return Transformer(config, Init(1, dtype))


def adapted(*plugins: object, model: Transformer | None = None) -> PeftModel:
    """A small LoRA, with plugins called plugin-0, plugin-1 and so on."""
    host = Host.installed()
    for number, plugin in enumerate(plugins):
        host.register(plugin, f"plugin-{number}")
    recipe = LoraConfig(r=2, target_modules=["q_proj"])
    return get_peft_model(model or classifier(), recipe, host=host)


def needles(count: int, *, seed: int = 0) -> EncodedData:
    """Texts of class 1 where the needle is in them, and of class 0 where it is not."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, VOCAB, rng.integers(3, 10)) for _ in range(count)]
    return EncodedData([Encoded(tuple(map(int, ids)), int(NEEDLE in ids)) for ids in texts])


def countings(count: int, *, seed: int = 0) -> EncodedData:
    """Texts that count up from anywhere, round and round: each token follows from the last."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        start, length = rng.integers(1, VOCAB), rng.integers(3, 10)
        ids = tuple(int((start + i) % (VOCAB - 1)) + 1 for i in range(length))
        texts.append(Encoded(ids, ids))
    return EncodedData(texts)


def weights(model: Transformer) -> dict[str, np.ndarray]:
    """Copies of all weights."""
    return {path: array.copy() for path, array in model.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return True if two sets of weights agree bit for bit."""
    return all(np.array_equal(one[path], other[path]) for path in one)


def saving(model: Transformer) -> Save:
    """Make a writer of the model's weights."""

    def save(folder: Path) -> None:
        for path, array in model.state_dict().items():
            np.save(folder / f"{path}.npy", array)

    return save


def saved(folder: Path) -> dict[str, np.ndarray]:
    """Read the weights that `saving` wrote."""
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def at_step(step: int, action: Observer) -> Observer:
    """Make an observer that acts when that step has ended."""

    def observe(event: Event) -> None:
        if isinstance(event, StepEnded) and event.step == step:
            action(event)

    return observe
