"""FolderLayout: the files of an adapter's folder in one library."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["HUGGING_FACE", "FolderLayout"]

Settings = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The layout of a folder in which a library keeps one adapter.

    Every library names its settings file adapter_config.json. A plugin that reads or writes
    adapters of another library describes its layout in the hook `foreign_layouts`.

    Attributes:
        name: the library.
        weights: the file with the weights, as safetensors.
        never_read: the file with weights in a format that is not read, such as a pickle.
        save_again: instructions for errors, to follow "save it as safetensors, ".
        base_key: the setting with the name of the base model.
        noted: the settings that `inspect` shows unchanged.
        tensor_names: a regular expression that only the names of its tensors match.
        recognises: returns True for settings of this library.
        kind_of: returns the library's name for the kind of adapter with these settings.
    """

    name: str
    weights: str
    never_read: str
    save_again: str
    base_key: str
    noted: tuple[str, ...]
    tensor_names: str
    recognises: Callable[[Settings], bool]
    kind_of: Callable[[Settings], str]


def _recognises(settings: Settings) -> bool:
    return "peft_type" in settings


def _kind_of(settings: Settings) -> str:
    return str(settings.get("peft_type")).lower()


HUGGING_FACE = FolderLayout(
    name="Hugging Face PEFT",
    weights="adapter_model.safetensors",
    never_read="adapter_model.bin",
    save_again="with save_pretrained of PEFT",
    base_key="base_model_name_or_path",
    noted=("task_type", "base_model_name_or_path", "revision", "peft_version"),
    tensor_names=r"base_model\.model\..*|prompt_embeddings",
    recognises=_recognises,
    kind_of=_kind_of,
)
