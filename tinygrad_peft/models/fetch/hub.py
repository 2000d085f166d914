"""Download models and adapters from the Hugging Face hub, by huggingface_hub (extra `hub`)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from tinygrad_peft.errors import CheckpointError, FetchError, MissingExtraError, shortened
from tinygrad_peft.files import PICKLES
from tinygrad_peft.models.companions import COMPANIONS

__all__ = ["HubKind", "HubName", "download_from_hub", "hub_name", "is_hub_name"]

HubKind: TypeAlias = Literal["model", "adapter"]

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "reparameterization.safetensors")
_SENTENCE = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("[0-9]_*/config.json", "[0-9]_*/model.safetensors"),
)
# Only files that are read: no pickle, no code, no copy of the weights in another format.
_FILES: Mapping[HubKind, tuple[str, ...]] = {
    "model": (
        *("config.json", "model.safetensors"),
        *("model.safetensors.index.json", "model-*-of-*.safetensors"),
        *COMPANIONS,
        *_SENTENCE,
    ),
    "adapter": (
        *COMPANIONS,
        *("recipe.json", *_ADAPTER, *(f"[0-9]*-*/{name}" for name in _ADAPTER)),
        *("adapter.safetensors", "adapters.safetensors"),  # AdapterHub's and mlx-lm's
        *_SENTENCE,
    ),
}
# One file of each group is required.
_NEEDED: Mapping[HubKind, tuple[tuple[str, ...], ...]] = {
    "model": (("config.json",), ("model.safetensors", "model.safetensors.index.json")),
    "adapter": (("recipe.json", "adapter_config.json"),),
}


class HubName(NamedTuple):
    """A repository on the hub, a folder in it ("" for the repository itself), and a revision."""

    repository: str
    folder: str
    revision: str | None


def hub_name(text: str) -> HubName | None:
    """Parse `organisation/name`, also with /folder and @revision; None for anything else."""
    part = r"[A-Za-z0-9][\w.-]*"
    pattern = rf"(?P<repository>{part}/{part})(?P<folder>(/{part})*)(@(?P<revision>\w[\w./-]*))?"
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        return None
    return HubName(match["repository"], match["folder"].lstrip("/"), match["revision"])


def is_hub_name(text: str) -> bool:
    """Tell whether a text may name a repository on the hub, or a folder in one."""
    return hub_name(text) is not None


def download_from_hub(
    name: str, *, revision: str | None = None, kind: HubKind = "model", folder: str = ""
) -> Path:
    """Download a repository's files to huggingface_hub's own cache, and return their folder.

    Downloads only files that are read and not yet in the cache; an interrupted download resumes.
    Without a network, or with HF_HUB_OFFLINE=1, the cache must have them all. HF_TOKEN, HF_HOME and
    the other variables of huggingface_hub have their usual meaning.

    Args:
        name: `organisation/name`.
        revision: a branch, a tag or a commit; `main` by default.
        kind: the files to download, a model's or an adapter's.
        folder: the folder in the repository that has them; the repository itself by default.

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
    patterns = [f"{folder}/{file}" if folder else file for file in _FILES[kind]]
    try:
        snapshot = snapshot_download(
            name, revision=revision, allow_patterns=patterns, library_name="tinygrad-peft"
        )
    except Exception as error:  # its own, or of its HTTP library, which differs by version
        place = f"{name}/{folder}" if folder else name
        raise FetchError(f"{_at_revision(place, revision)}: {_reason(error)}") from error
    _require_files(Path(snapshot), name, folder, kind)
    return Path(snapshot, folder)


_SHOWN = 5  # folders in an error


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


def _require_files(snapshot: Path, name: str, folder: str, kind: HubKind) -> None:
    """Raise CheckpointError if a required file is missing."""
    missing = [
        " or ".join(either)
        for either in _NEEDED[kind]
        if not any((snapshot / folder / file).is_file() for file in either)
    ]
    if missing:
        place = f"{name}/{folder}" if folder else name
        instead = _instead(name, snapshot, folder, kind)
        raise CheckpointError(f"{place} has no {' and no '.join(missing)}{instead}")


def _instead(name: str, snapshot: Path, folder: str, kind: HubKind) -> str:
    """Hint at what a repository, or a folder in it, has instead, if the hub answers."""
    from huggingface_hub import list_repo_files

    try:
        every = list_repo_files(name, revision=snapshot.name)
    except Exception:  # noqa: BLE001 - this is a hint beside an error
        return ""
    within = f"{folder}/" if folder else ""
    files = [file.removeprefix(within) for file in every if file.startswith(within)]
    pickles = [file for file in files if Path(file).suffix in PICKLES]
    if "adapter_config.json" in files:
        return ": it is an adapter, not a model"
    if "model.safetensors" in files or "model.safetensors.index.json" in files:
        return ": it is a model, not an adapter"
    needed = _NEEDED[kind][0]
    places = dict.fromkeys(f"{name}/{p.parent}" for p in map(Path, every) if p.name in needed)
    if named := [place for place in places if not place.endswith("/.")]:
        return f"; name a folder in it: {', '.join(named[:_SHOWN])}"
    if pickles:
        return f": {pickles[0]} is a pickle, which can run any code, and is never downloaded"
    gguf = next((file for file in files if file.endswith(".gguf")), None)
    return f": download {gguf} and name the file" if gguf else ""
