"""Read the end-of-text token ids from a tokenizer's files, without loading the tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.tokenization.tokenizer import Tokenizer


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """Return `Tokenizer.load(folder).eos_ids`; a model's generation config may add more.

    The tokenizer is loaded, which takes seconds, only if its end token is defined by its class
    rather than by its files. Raises CheckpointError.
    """
    config = _json(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder")
    try:
        if isinstance(added, Mapping):
            contents = {int(token_id): token["content"] for token_id, token in added.items()}
        else:
            # As in transformers, these files are read only if the entry is absent.
            config = {**config, **_json(folder / "special_tokens_map.json")}
            tokens = _json(folder / "tokenizer.json").get("added_tokens", ())
            contents = {token["id"]: token["content"] for token in tokens}
        end = config.get("eos_token")
        content = end["content"] if isinstance(end, Mapping) else end
    except (KeyError, TypeError, ValueError):  # transformers may be able to read it
        return Tokenizer.load(folder).eos_ids
    found = tuple(token_id for token_id, each in contents.items() if each == content)
    return found or Tokenizer.load(folder).eos_ids


def _json(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON") from error
    return value if isinstance(value, dict) else {}
