"""Earlier work in a folder that is to be written: refused, or replaced whole.

Earlier work is what this library and those whose files it reads write under names of their own:
models, tokenizers, adapters, and the records of runs. Everything else stays as it is: notes, a
README.md, a repository, adapters in subfolders of their names.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.files.transaction import Transaction

__all__ = ["HELD", "earlier_work", "refuse_earlier_work", "replace_earlier_work"]

HELD: Mapping[str, str] = {
    "config.json": "a model",
    "adapter_config.json": "an adapter",
    "recipe.json": "an adapter",
    "comparison.json": "a comparison",
    "checkpoints": "an unfinished run",
}
_WEIGHTS = r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
_TOKENIZER = (
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.(jinja|json)"
)
_ADAPTER = (
    r"adapter_config\.json|recipe\.json|adapter\w*\.(safetensors|bin)"
    r"|reparameterization\.(json|safetensors)|running_state\.safetensors"
)
_OTHERS = (
    r"(generation_)?config\.json|(metrics|comparison|modules)\.json|log\.jsonl|comparison\.png"
    r"|(config_sentence_transformers|sentence_bert_config)\.json"
)
_OURS = re.compile(f"{_WEIGHTS}|{_TOKENIZER}|{_ADAPTER}|{_OTHERS}")
_STATE = re.compile(r"checkpoints/step-\d+/state\.(json|safetensors)")
# Steps and contenders (0-name), modules (1_Pooling), and what a run writes beside its best weights.
_PARTS = re.compile(r"\d{1,3}[-_][\w.-]+|interrupted|checkpoints|step-\d+")


def refuse_earlier_work(
    folder: Path,
    files: Collection[str] = HELD.keys(),
    *,
    where: str = "",
    instead: str = "or pass overwrite=True",
) -> None:
    """Raise ConfigError if a folder has one of the files, each a key of `HELD`.

    The message begins with `where`, else with the folder, and `instead` names another way.
    """
    for name in files:
        if (folder / name).exists():
            raise ConfigError(
                f"{where or folder}: there is {HELD[name]} in it ({name}): name another folder, "
                f"{instead}"
            )


def replace_earlier_work(save: Transaction, *, overwrite: bool) -> None:
    """Let a save remove the earlier work in its folder, unless it writes the file anew.

    Raises ConfigError if there is any, without `overwrite`.
    """
    if not overwrite:
        refuse_earlier_work(save.folder)
    save.remove(earlier_work(save.folder))


def earlier_work(folder: Path) -> list[str]:
    """List the files of earlier work in a folder and in its parts, by their relative paths."""
    return list(_files(folder, ""))


def _files(folder: Path, above: str) -> Iterator[str]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if _PARTS.fullmatch(entry.name):
                yield from _files(folder / entry.name, f"{above}{entry.name}/")
        elif _OURS.fullmatch(entry.name) or _STATE.fullmatch(above + entry.name):
            yield above + entry.name
