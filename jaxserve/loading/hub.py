"""Download models from the Hugging Face hub, through its cache."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jaxserve.errors import CheckpointError

# Files to download: not pickled weights, nor those of other frameworks, nor images.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt"]


def download(name: str, *, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Return the snapshot folder of hub model `name`, downloading files that are not cached.

    Raises CheckpointError if there is no such folder or model, access is denied, or the hub cannot
    be reached and the model is not cached.
    """
    at = f"{name} at revision {revision}" if revision else name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"there is no folder {name}")
    try:
        return Path(
            snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_WANTED)
        )
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid hub name") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the hub has no {at}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name}, and the hub has no such public model"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name}; the hub cannot be reached (or HF_HUB_OFFLINE is set) and"
            f" {at} is not in the cache"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"downloading {at} from the hub failed") from error


def list_files(name: str, *, revision: str | None) -> tuple[str, ...]:
    """Return the files of hub model `name`; empty if the hub cannot be reached."""
    try:
        return tuple(HfApi().list_repo_files(name, revision=revision))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return ()
