"""The files of a checkpoint beside its config and weights, which go wherever it goes.

A README describes the checkpoint itself, so what is made from it does not get one.
"""

from collections.abc import Iterator
from pathlib import Path

from tinygrad_peft.files import read_bytes, saving

__all__ = ["COMPANIONS", "copy_companions"]

# Patterns of paths within the folder.
COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model"),  # SentencePiece's
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "license*", "notice*"),
)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the companions of the checkpoint in `source`, and remove others from `folder`.

    Raises CheckpointError for files that cannot be read or written.
    """
    with saving(folder) as save:
        save.remove(_companions(save.folder))
        for name in _companions(source):
            save.path(name).write_bytes(read_bytes(source / name))


def _companions(folder: Path) -> Iterator[str]:
    for pattern in COMPANIONS:
        for path in folder.glob(pattern):
            if path.is_file():
                yield path.relative_to(folder).as_posix()
