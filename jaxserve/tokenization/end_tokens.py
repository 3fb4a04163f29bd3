"""The tokens that end a text, by the files of a tokenizer, which need not be loaded for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.tokenization.tokenizer import Tokenizer


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """Return a tokenizer's end-of-text ids; a model's generation config may name more.

    They are `Tokenizer.load(folder).eos_ids`. The tokenizer is loaded only where its files leave to
    its class what its end token is: that takes seconds. Raises CheckpointError as it does.
    """
    config = _json(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder")
    try:
        if isinstance(added, Mapping):
            contents = {int(token_id): token["content"] for token_id, token in added.items()}
        else:
            # As transformers reads them: these files count where the entry is not.
            config = {**config, **_json(folder / "special_tokens_map.json")}
            tokens = _json(folder / "tokenizer.json").get("added_tokens", ())
            contents = {token["id"]: token["content"] for token in tokens}
        end = config.get("eos_token")
        content = end["content"] if isinstance(end, Mapping) else end
    except (KeyError, TypeError, ValueError):  # transformers may know what to make of it
        return Tokenizer.load(folder).eos_ids
    found = tuple(token_id for token_id, each in contents.items() if each == content)
    return found or Tokenizer.load(folder).eos_ids


def _json(path: Path) -> Mapping[str, Any]:
    """Return the object in a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON") from error
    return value if isinstance(value, dict) else {}
