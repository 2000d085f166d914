"""Download models and adapters from the Hugging Face hub, by huggingface_hub (extra `hub`)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from tinygrad_peft.errors import CheckpointError, FetchError, MissingExtraError, shortened
from tinygrad_peft.files import PICKLES
from tinygrad_peft.models.companions import COMPANIONS

__all__ = ["HubKind", "download_from_hub", "is_hub_name"]

HubKind: TypeAlias = Literal["model", "adapter"]

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "reparameterization.safetensors")
# Only files that are read: no pickle, no code, no copy of the weights in another format.
_FILES: Mapping[HubKind, tuple[str, ...]] = {
    "model": (
        *("config.json", "model.safetensors"),
        *("model.safetensors.index.json", "model-*-of-*.safetensors"),
        *COMPANIONS,
    ),
    "adapter": (
        *("recipe.json", *_ADAPTER, *(f"[0-9]*-*/{name}" for name in _ADAPTER)),
        *("adapter.safetensors", "adapters.safetensors"),  # AdapterHub's and mlx-lm's
    ),
}
# One file of each group is required.
_NEEDED: Mapping[HubKind, tuple[tuple[str, ...], ...]] = {
    "model": (("config.json",), ("model.safetensors", "model.safetensors.index.json")),
    "adapter": (("recipe.json", "adapter_config.json"),),
}


def is_hub_name(text: str) -> bool:
    """Tell whether a text may name a repository: `organisation/name`, also with @revision."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(rf"{part}/{part}(@\w[\w./-]*)?", text, re.ASCII) is not None


def download_from_hub(name: str, *, revision: str | None = None, kind: HubKind = "model") -> Path:
    """Download a repository's files to huggingface_hub's own cache, and return their folder.

    Downloads only files that are read and not yet in the cache; an interrupted download resumes.
    Without a network, or with HF_HUB_OFFLINE=1, the cache must have them all. HF_TOKEN, HF_HOME and
    the other variables of huggingface_hub have their usual meaning.

    Args:
        name: `organisation/name`.
        revision: a branch, a tag or a commit; `main` by default.
        kind: the files to download, a model's or an adapter's.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        FetchError: no such repository or revision, no access to it, or no network.
        CheckpointError: the repository lacks the files, or has only pickles of the weights.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(
            f"{name} is on the hub, and huggingface_hub is not installed: "
            "pip install 'tinygrad-peft[hub]'"
        ) from None
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(_FILES[kind]), library_name="tinygrad-peft"
        )
    except Exception as error:  # its own, or of its HTTP library, which differs by version
        raise FetchError(f"{_at_revision(name, revision)}: {_reason(error)}") from error
    _require_files(Path(folder), name, kind)
    return Path(folder)


def _at_revision(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _reason(error: Exception) -> str:
    """Explain a failed download in one line."""
    from huggingface_hub import constants, errors

    known: Mapping[type[Exception], str] = {  # subclasses first
        errors.GatedRepoError: (
            "the repository is gated: request access on its page, and set HF_TOKEN"
        ),
        errors.RepositoryNotFoundError: (
            "the hub has no such repository, or it is private: then set HF_TOKEN"
        ),
        errors.RevisionNotFoundError: "the repository has no such revision",
        errors.HFValidationError: "invalid repository name: expected organisation/name",
    }
    for kind, told in known.items():
        if isinstance(error, kind):
            return told
    causes = _causes(error)
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return "the cache is incomplete, and HF_HUB_OFFLINE forbids downloads"
    if any("Timeout" in type(cause).__name__ for cause in causes):
        return (
            f"{constants.ENDPOINT} is too slow: try again (what has arrived is kept), or set "
            "HF_HUB_DOWNLOAD_TIMEOUT to more than 10 seconds"
        )
    what = shortened(next(iter(str(causes[-1]).splitlines()), ""))
    return (
        f"the download failed: {type(causes[-1]).__name__}: {what} ({constants.ENDPOINT}; "
        "try again: what has arrived is kept)"
    )


def _causes(error: BaseException) -> list[BaseException]:
    """List an error and its causes, the first cause last."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        if cause in causes:
            break
        causes.append(cause)
    return causes


def _require_files(folder: Path, name: str, kind: HubKind) -> None:
    """Raise CheckpointError if a required file is missing."""
    missing = [
        " or ".join(either)
        for either in _NEEDED[kind]
        if not any((folder / file).is_file() for file in either)
    ]
    if missing:
        raise CheckpointError(f"{name} has no {' and no '.join(missing)}{_instead(name, folder)}")


def _instead(name: str, folder: Path) -> str:
    """Hint at what a repository has instead, if the hub answers."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=folder.name)
    except Exception:  # noqa: BLE001 - this is a hint beside an error
        return ""
    pickles = [file for file in files if Path(file).suffix in PICKLES]
    if "adapter_config.json" in files:
        return ": it is an adapter, not a model"
    if "model.safetensors" in files or "model.safetensors.index.json" in files:
        return ": it is a model, not an adapter"
    if pickles:
        return f": {pickles[0]} is a pickle, which can run any code, and is never downloaded"
    gguf = next((file for file in files if file.endswith(".gguf")), None)
    return f": download {gguf} and name the file" if gguf else ""
