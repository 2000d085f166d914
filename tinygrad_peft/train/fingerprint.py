"""The facts that two runs must share for one to go on where the other stopped.

The same examples, settings, recipe, model and frozen weights: with other ones the rest of a run
would have other bits.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from tinygrad_peft.arrays import AnyArray
from tinygrad_peft.nn import Affine, Module, Transformer
from tinygrad_peft.nn.module import Parameter
from tinygrad_peft.nn.weights import weight_of
from tinygrad_peft.peft import PeftModel, config_to_dict
from tinygrad_peft.train.config import CHECKPOINT_SETTINGS, TrainConfig
from tinygrad_peft.train.encoding import EncodedData
from tinygrad_peft.train.trainable import Trainable

__all__ = ["Facts", "differences", "frozen_weights", "run_facts"]

Facts = Mapping[str, object]  # JSON values, in maps and lists

_ABSENT = object()
_DIGESTS = ("training examples", "evaluation examples", "frozen weights")


def run_facts(
    model: Trainable, train_set: EncodedData, eval_set: EncodedData | None, config: TrainConfig
) -> dict[str, object]:
    """Return the facts of a run before its first step, without the frozen weights."""
    settings = dataclasses.asdict(config).items()
    facts: dict[str, object] = {
        "settings": {k: v for k, v in settings if k not in CHECKPOINT_SETTINGS},
        "training examples": _digest_of_examples(train_set),
        "evaluation examples": None if eval_set is None else _digest_of_examples(eval_set),
    }
    if isinstance(model, PeftModel):
        facts["recipe"] = [config_to_dict(step) for step in model.record.recipe]
    if isinstance(model, PeftModel | Transformer):
        facts["model"] = model.config
    # As a file gives them back: lists in place of tuples.
    as_read: dict[str, object] = msgspec.json.decode(msgspec.json.encode(facts))
    return as_read


def frozen_weights(model: Module) -> str:
    """Return a digest of all weights that are not trained, 4-bit ones included."""
    digest = hashlib.sha256()
    for path, array in _frozen(model):
        digest.update(f"{path} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def differences(before: Facts, now: Facts) -> list[str]:
    """List every fact of an earlier run that this one does not share, one line each."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {_told(name, old.get(name, _ABSENT), new.get(name, _ABSENT))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]


def _told(name: str, old: object, new: object) -> str:
    if name in _DIGESTS and None not in (old, new):
        return "expected those of the run, got others"
    was, now = ("nothing" if value is _ABSENT else repr(value) for value in (old, new))
    return f"expected {was}, as the run has, got {now}"


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values within maps and lists, each with the names on its way."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}: {key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        for place, item in enumerate(value, start=1):
            yield from _flat(item, f"{name}: step {place}")
    else:
        yield name, value


def _digest_of_examples(examples: EncodedData) -> str:
    """Return a digest of all ids and labels, in their order."""
    digest = hashlib.sha256(f"{len(examples)} {examples.pad_id}".encode())
    for example in examples:
        for numbers in (example.input_ids, example.labels):
            array = np.array(numbers, np.int64)
            digest.update(np.int64(array.size if array.ndim else -1).tobytes() + array.tobytes())
    return digest.hexdigest()


def _frozen(model: Module) -> Iterator[tuple[str, AnyArray]]:
    seen: set[Parameter] = set()
    for path, module in model.named_modules():
        if module.packed_elements and isinstance(module, Affine):
            yield path, weight_of(module)
        for name, parameter in module.own_parameters():
            if not parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{path}.{name}", parameter.data
