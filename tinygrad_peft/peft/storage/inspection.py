"""Reports on any folder or file of a model or an adapter, from headers alone."""

from pathlib import Path

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.files import PICKLES, refuse_pickle, settled
from tinygrad_peft.host import Host
from tinygrad_peft.models.inspection import Report, inspect_gguf, inspect_model, inspect_tensors
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft.storage.folder import AdapterFolder
from tinygrad_peft.peft.storage.layout import (
    CONFIG,
    RECIPE,
    adapter_folders,
    holds_adapter,
    known_layouts,
)
from tinygrad_peft.peft.storage.report import report_on

__all__ = ["inspect_path"]

_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
_SETTINGS = ("config.json", CONFIG, RECIPE, _MODEL_FILES[1])


def inspect_path(
    path: Path, host: Host | None = None, *, base: TransformerConfig | None = None
) -> Report:
    """Report on a model or an adapter from any library. Reads no weights.

    An adapter is compared with `base`, or else with the model that its recipe.json describes, or
    else with its own settings only.

    Raises CheckpointError for a path that does not exist, or is neither a model nor an adapter;
    PluginError for installed plugins that contradict each other.
    """
    if path.is_dir():
        return _inspect_folder(settled(path), host or Host.installed(), base)
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a regular file")
    if path.name in _SETTINGS:
        return _inspect_folder(settled(path.parent), host or Host.installed(), base)
    if path.suffix.lower() == ".gguf":
        return inspect_gguf(path)
    if path.suffix.lower() == ".safetensors":
        layouts = known_layouts(host or Host.installed())
        return inspect_tensors(
            path, {f"an adapter of {layout.name}": layout.tensor_names for layout in layouts}
        )
    raise CheckpointError(f"{path}: expected a folder, or a .safetensors or .gguf file")


def _inspect_folder(folder: Path, host: Host, base: TransformerConfig | None) -> Report:
    """Report on every part of a folder; a single part is the report itself."""
    parts = [inspect_gguf(file) for file in sorted(folder.glob("*.gguf"))]
    if (folder / "config.json").is_file() or any((folder / n).is_file() for n in _MODEL_FILES):
        parts.append(inspect_model(folder))
    steps: list[str] = []
    if holds_adapter(folder, known_layouts(host)):
        adapter = AdapterFolder.read(folder, host)
        steps = [step.name for step in adapter.steps]
        parts.append(report_on(adapter, base))
    parts += [
        report_on(AdapterFolder.read(folder / name, host), base)
        for name in adapter_folders(folder)
        if name not in steps
    ]
    if not parts:
        raise CheckpointError(f"{folder} holds neither a model nor an adapter{_held(folder)}")
    return parts[0] if len(parts) == 1 else Report(path=folder, kind="folder", parts=parts)


def _held(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if Path(name).suffix.lower() in PICKLES]:
        return f": {', '.join(pickles[:3])} can run any code, and is never read"
    return f" (it holds {', '.join(names[:5])})" if names else " (it is empty)"
