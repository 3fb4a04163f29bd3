"""Read the files of sentence-transformers in a checkpoint: the modules around the model.

`modules.json` lists them, and the folder of each has a `config.json`.
"""

import json
from collections.abc import Mapping
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint

MODULES = "modules.json"
_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize", "LogitScore")


def list_modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return class name and folder of each of sentence-transformers' modules, in order."""
    path = checkpoint.folder / MODULES
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text("utf-8"))
        # A type is the path of a class, whose module differs between releases.
        return [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in listed]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{MODULES} of {checkpoint.name} is not a list of modules") from error


def read_modules(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the folders of sentence-transformers' modules, by class name."""
    modules = dict(list_modules(checkpoint))
    strange = modules.keys() - set(_SUPPORTED)
    if strange:
        raise CheckpointError(
            f"{MODULES} of {checkpoint.name} has {', '.join(sorted(strange))}; jaxserve supports"
            f" {', '.join(_SUPPORTED)}"
        )
    if any("/" in folder or ".." in folder for folder in modules.values()):
        raise CheckpointError(f"{MODULES} of {checkpoint.name} has folders outside the checkpoint")
    return modules


def read_json(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """Return a JSON object of a checkpoint's folder, empty if there is no such file."""
    path = checkpoint.folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} of {checkpoint.name} is not a JSON object")
    return value
