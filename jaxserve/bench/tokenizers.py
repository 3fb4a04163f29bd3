"""Find the tokenizer of a server's model, for random prompts and for chats."""

from collections.abc import Iterable
from pathlib import Path

from jaxserve.bench.workload import Vocabulary
from jaxserve.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
ASSETS = Path(__file__).parents[1] / "assets"


def find_tokenizer(names: Iterable[str | Path]) -> Path:
    """Return the first tokenizer file of models: folders, the model in the package, or hub names.

    Hub names are looked up in the local cache. Raises ConfigError if no file exists.
    """
    names = list(names)
    for name in names:
        for folder in (Path(name), ASSETS / name):
            if (folder / TOKENIZER_FILE).is_file():
                return folder / TOKENIZER_FILE
    for name in names:
        cached = _cached(str(name))
        if cached is not None:
            return cached
    found = ", ".join(map(str, names)) or "nothing"
    raise ConfigError(
        f"tokenizer must be given, as a folder with {TOKENIZER_FILE}; looked for in {found}"
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json. Random prompts use no special tokens."""
    from tokenizers import Tokenizer  # noqa: PLC0415  (only some datasets need it)

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception on a malformed file
        raise ConfigError(f"tokenizer must be a tokenizer.json, got {path}") from error
    added = backend.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    return Vocabulary(
        ids=tuple(sorted(set(backend.get_vocab().values()) - special)),
        encode=lambda text: list(backend.encode(text).ids),
        decode=lambda ids: str(backend.decode(list(ids))),
    )


def _cached(name: str) -> Path | None:
    """Return the tokenizer of a hub model from the local cache."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        path = try_to_load_from_cache(name, TOKENIZER_FILE)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None
