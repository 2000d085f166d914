"""Every kind of save, killed before each of its changes to the file system.

What our readers find is the old folder or the new one, bit for bit. A program that knows nothing of
our saves finds the same, or no settings to begin with: never settings of one and weights of the
other.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.files.killing import killed_folders
from tests.peft.small import GPT2, small
from tests.train.test_comparison_result import WHOLE
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import saving, settled
from tinygrad_peft.host import Host
from tinygrad_peft.kit.new_plugin import NewPlugin, write_plugin
from tinygrad_peft.models import load_model, load_tokenizer, save_model
from tinygrad_peft.peft import AdapterFolder, PeftConfig, PeftModel, get_peft_model
from tinygrad_peft.train.best_weights import BestWeights
from tinygrad_peft.train.comparison_result import read_comparison, write_comparison
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig

Write = Callable[[Path], None]
Read = Callable[[Path], object]
Contents = dict[str, bytes]
ENTRIES = ("adapter_config.json", "config.json")


@cache
def host() -> Host:
    return Host.installed()


# ---------- writers ----------


def nothing(_: Path) -> None: ...


def adapter(*recipe: PeftConfig, seed: int = 1) -> PeftModel:
    peft = get_peft_model(small(), recipe, seed=seed, host=host())
    for parameter in peft.trainable_parameters():
        parameter.data = parameter.data + seed
    return peft


def one(*recipe: PeftConfig, seed: int = 1, layout: str = "Hugging Face PEFT") -> Write:
    peft = adapter(*recipe, seed=seed)
    return lambda folder: peft.save_pretrained(folder, layout=layout)


def several(*names: str, alpha: float, seed: int) -> Write:
    peft = adapter(LoraConfig(r=2, lora_alpha=alpha), seed=seed)
    for name in names:
        peft.add_adapter(name, LoraConfig(r=2, lora_alpha=alpha))
    return peft.save_pretrained


def model(config: int, words: str, *, sharded: bool = False) -> Write:
    """A model and its tokenizer; `config` is one that tells two of them apart."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the text extra")
    from tinygrad_peft.models import Tokenizer

    plain = small(replace(GPT2, num_hidden_layers=config))
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0])
    )

    def write(folder: Path) -> None:
        with saving(folder) as save:
            save_model(plain, save.staged, overwrite=True)
            Tokenizer(backend, {"unk_token": words[0]}).save(save.staged)
        if sharded:
            shard(folder)

    return write


def shard(folder: Path) -> None:
    """Split a checkpoint in two, and give it the older files of a tokenizer."""
    tensors = sorted(load_file(folder / "model.safetensors").items())
    parts = {"model-00001-of-00002.safetensors": tensors[::2]}
    parts["model-00002-of-00002.safetensors"] = tensors[1::2]
    for name, some in parts.items():
        save_file(dict(some), folder / name, metadata={"format": "pt"})
    places = {key: name for name, some in parts.items() for key, _ in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "old"}))


def comparison(loss: float) -> Write:
    whole = replace(WHOLE, rows=tuple(replace(row, loss=loss) for row in WHOLE.rows))
    return lambda folder: write_comparison(folder / "comparison.json", whole)


def best_weights(alpha: float, seed: int, *, running: bool) -> Write:
    """Keep weights as a run does, with the running state of a plugin if it has any."""
    peft = adapter(LoraConfig(r=2, lora_alpha=alpha), seed=seed)

    def save(folder: Path) -> None:
        peft.save_pretrained(folder)
        if running:
            (folder / "running_state.safetensors").write_bytes(bytes([seed]))

    def keep(folder: Path) -> None:
        parameters = peft.trainable_parameters()
        BestWeights(parameters, folder, save, ("running_state.safetensors",)).keep(step=seed)

    return keep


def plugin(folder: Path) -> None:
    write_plugin(NewPlugin("mild_shift"), folder, host())


# ---------- readers ----------


def read_adapter(folder: Path) -> object:
    read = AdapterFolder.read(folder, host())
    if not read.steps:
        return None
    assert read.all_problems == []
    steps = [
        (
            s.name,
            s.settings,
            s.origin,
            [(k, t.read(np.dtype(np.float32)).tobytes()) for k, t in part.items()],
        )
        for s in read.steps
        for part in (s.tensors or {}, s.beside or {})
    ]
    running = folder / "running_state.safetensors"
    return read.recipe, steps, running.read_bytes() if running.exists() else None


def read_adapters(folder: Path) -> object:
    return [read_adapter(folder / name) for name in (".", "first", "new")]


def read_model(folder: Path) -> object:
    settled(folder)
    if not (folder / "config.json").exists():
        return None
    found, tokenizer = load_model(folder), load_tokenizer(folder)
    weights = [(name, p.data.tobytes()) for name, p in found.named_parameters()]
    return found.config, weights, tokenizer.encode("a b c"), tokenizer.pad_id


def read_either(folder: Path) -> object:
    return read_model(folder) or read_adapter(folder)


def read_rows(folder: Path) -> object:
    try:
        return read_comparison(folder / "comparison.json")
    except CheckpointError:
        return None


def read_plugin(folder: Path) -> object:
    return contents(folder)  # as pip does, without any of our readers


def contents(folder: Path) -> Contents:
    """Read all files but hidden ones and those in hidden folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }


def folders_of(found: Contents) -> dict[str, Contents]:
    """Group files by their folders."""
    by_folder: dict[str, Contents] = {}
    for path, content in found.items():
        above, _, name = path.rpartition("/")
        by_folder.setdefault(above, {})[name] = content
    return by_folder


def assert_not_mixed(found: Contents, versions: tuple[Contents, Contents]) -> None:
    """Check each folder with settings against that folder before and after, file by file."""
    for above, files in folders_of(found).items():
        if any(entry in files for entry in ENTRIES):
            known = [folders_of(version).get(above, {}) for version in versions]
            assert any(files.items() <= version.items() for version in known), (above, [*files])


# ---------- the kinds ----------

LORA, LOUD = LoraConfig(r=2, lora_alpha=4), LoraConfig(r=2, lora_alpha=64)
PREFIX = PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True)
BOTTLENECK = BottleneckAdapterConfig(bottleneck_dim=4, reads="residual")

KINDS: dict[str, Callable[[], tuple[Write, Write, Read]]] = {
    "an adapter into a new folder": lambda: (nothing, one(LORA), read_adapter),
    "an adapter over one with another lora_alpha": lambda: (
        one(LORA),
        one(LOUD, seed=2),
        read_adapter,
    ),
    "a recipe over another recipe": lambda: (
        one(LORA, IA3Config()),
        one(PREFIX, LOUD, IA3Config(), seed=2),
        read_adapter,
    ),
    "one step over a recipe": lambda: (one(LORA, PREFIX), one(LOUD, seed=2), read_adapter),
    "a recipe over one step": lambda: (one(PREFIX), one(LORA, LOUD, seed=2), read_adapter),
    "several adapters over several": lambda: (
        several("first", "old", alpha=4, seed=1),
        several("first", "new", alpha=64, seed=2),
        read_adapters,
    ),
    "AdapterHub's layout over PEFT's recipe": lambda: (
        one(LORA, IA3Config()),
        one(BOTTLENECK, seed=2, layout="AdapterHub"),
        read_adapter,
    ),
    "mlx-lm's layout over PEFT's": lambda: (
        one(LORA),
        one(LOUD, seed=2, layout="mlx-lm"),
        read_adapter,
    ),
    "PEFT's layout over mlx-lm's": lambda: (
        one(LORA, layout="mlx-lm"),
        one(LOUD, seed=2),
        read_adapter,
    ),
    "a model with its tokenizer into a new folder": lambda: (
        nothing,
        model(1, "abc"),
        read_model,
    ),
    "a model over one in shards": lambda: (
        model(1, "abc", sharded=True),
        model(2, "cba"),
        read_model,
    ),
    "a model over a recipe": lambda: (one(LORA, IA3Config()), model(1, "abc"), read_either),
    "a comparison": lambda: (comparison(0.5), comparison(0.25), read_rows),
    "a run's best weights": lambda: (
        best_weights(4, 1, running=True),
        best_weights(64, 2, running=False),
        read_adapter,
    ),
    "a new plugin": lambda: (nothing, plugin, read_plugin),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_save_is_old_or_new(kind: str, tmp_path: Path) -> None:
    write_old, write_new, read = KINDS[kind]()
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    write_old(old)
    before, versions = read(old), [contents(old)]
    write_old(new)
    write_new(new)
    after = read(new)
    versions.append(contents(new))
    assert before != after
    seen = []
    for folder in killed_folders(old, write_new, tmp_path / "killed"):
        assert_not_mixed(contents(folder), (versions[0], versions[1]))
        found = read(folder)
        assert found in (before, after), "neither old nor new"
        seen.append(found == after)
    assert seen == sorted(seen), "old until the save has happened, and new ever after"
    assert contents(folder) == versions[1]
    print(f"{kind}: {len(seen)} points, {seen.count(False)} old, {seen.count(True)} new")
