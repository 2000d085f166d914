"""What any folder or file of a model or adapter is, and what is wrong with it, by its headers."""

from collections.abc import Sequence
from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.host import Host
from tinygrad_peft.models.files import PICKLES, refuse_pickle
from tinygrad_peft.models.inspection import (
    Report,
    collected,
    inspect_gguf,
    inspect_model,
    inspect_tensors,
)
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft.adapter_report import inspect_recipe
from tinygrad_peft.peft.layout import (
    CONFIG,
    LAYOUTS,
    RECIPE,
    adapter_folders,
    layout_of,
    step_folders,
    weights_path,
)

__all__ = ["inspect_path"]

_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
_SETTINGS = ("config.json", CONFIG, RECIPE, _MODEL_FILES[1])


def inspect_path(
    path: Path, host: Host | None = None, *, base: TransformerConfig | None = None
) -> Report:
    """A report on a model or an adapter, whatever wrote it; no weight is read.

    An adapter is held against `base`, else against the model that its recipe.json tells of, and
    else against its own settings only.

    Raises CheckpointError where there is nothing, or neither a model nor an adapter; PluginError
    for installed plugins that contradict each other.
    """
    if path.is_dir():
        return _inspect_folder(path, host or Host.installed(), base)
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is no regular file")
    if path.name in _SETTINGS:
        return _inspect_folder(path.parent, host or Host.installed(), base)
    if path.suffix.lower() == ".gguf":
        return inspect_gguf(path)
    if path.suffix.lower() == ".safetensors":
        return inspect_tensors(path)
    raise CheckpointError(f"{path} is no folder, and no .safetensors or .gguf file")


def _inspect_folder(folder: Path, host: Host, base: TransformerConfig | None) -> Report:
    """A report on all that is in a folder: on its one part alone where it has no more."""
    parts = [inspect_gguf(file) for file in sorted(folder.glob("*.gguf"))]
    if (folder / "config.json").is_file() or any((folder / n).is_file() for n in _MODEL_FILES):
        parts.append(inspect_model(folder))
    weights = (weights_path(folder, layout) for layout in LAYOUTS)
    if any(path.is_file() for path in (folder / CONFIG, folder / RECIPE, *weights)):
        parts.append(_inspect_adapter(folder, host, base))
    parts += [_inspect_adapter(folder / name, host, base) for name in _own_adapters(folder)]
    if not parts:
        raise CheckpointError(f"{folder} holds neither a model nor an adapter{_held(folder)}")
    return parts[0] if len(parts) == 1 else Report(path=folder, kind="folder", parts=parts)


def _inspect_adapter(folder: Path, host: Host, base: TransformerConfig | None) -> Report:
    problems: list[str] = []
    collected(problems, lambda: layout_of(folder))
    if problems:
        return Report(path=folder, kind="adapter", problems=problems)
    return inspect_recipe(folder, host, base)


def _own_adapters(folder: Path) -> Sequence[str]:
    """The adapters with folders of their own, but for the steps of the one that is here."""
    problems: list[str] = []
    steps = collected(problems, lambda: step_folders(folder)) or []
    return [name for name in adapter_folders(folder) if name not in steps]


def _held(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if Path(name).suffix.lower() in PICKLES]:
        return f": {', '.join(pickles[:3])} can run any code, and is never read"
    return f": there is {', '.join(names[:5])}" if names else ": it is empty"
