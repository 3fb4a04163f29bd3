"""Explain why a file or folder cannot be loaded as a model, and what to do about it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from jaxserve.tokenization.sentencepiece_model import is_model

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".onnx", ".ot")
_MOST_LISTED = 3

_GGUF_ADVICE = (
    "jaxserve does not read GGUF. Give the repository that these files were made from, in Hugging"
    " Face's format (config.json and model*.safetensors)"
)
_ORIGINAL_ADVICE = (
    "which is Mistral's or Meta's own format. Give the model in Hugging Face's format (config.json"
    " and model*.safetensors)"
)


def wrong_file(path: Path) -> str | None:
    """Return why a file is not a configuration, judging by its name; None if it may be one."""
    if path.suffix == ".gguf":
        return f"{path} is a GGUF file: {_GGUF_ADVICE}"
    if path.suffix in {*PICKLED, ".safetensors"}:
        return f"{path} contains only weights: give its folder, which must have a config.json"
    return None


def wrong_folder(folder: Path, name: str, *, left_out: Iterable[str]) -> str:
    """Return why a folder without a `config.json` is not a model. left_out: see `no_weights`."""
    names = sorted({*left_out, *(path.name for path in folder.iterdir())})
    if "adapter_config.json" in names:
        return _adapter(folder, name)
    gguf = [each for each in names if each.endswith(".gguf")]
    if gguf:
        return f"{name} holds only GGUF files ({_listed(gguf)}): {_GGUF_ADVICE}"
    if "params.json" in names:
        return f"{name} has params.json and no config.json, {_ORIGINAL_ADVICE}"
    inside = sorted(str(path.parent) for path in folder.glob("*/config.json"))
    inside += sorted(str(path.parent) for path in folder.glob("snapshots/*/config.json"))
    hint = f". Did you mean {_listed(inside)}?" if inside else ": it is not a Hugging Face model"
    return f"{name} has no config.json{hint}"


def no_weights(folder: Path, name: str, *, left_out: Iterable[str]) -> str:
    """Return why a model's folder has no weights to load.

    left_out: files of its repository on the hub that were not downloaded.
    """
    names = sorted({*left_out, *(path.name for path in folder.iterdir())})
    if "adapter_config.json" in names:
        return _adapter(folder, name)
    pickled = [each for each in names if each.endswith((*PICKLED, ".bin.index.json"))]
    if pickled:
        return (
            f"{name} holds only pickled weights ({_listed(pickled)}), which can run code when"
            " opened: jaxserve does not load them. Convert them where you trust their author, with"
            f' transformers and torch: AutoModelForCausalLM.from_pretrained("{name}")'
            '.save_pretrained("FOLDER") writes safetensors, and'
            f' AutoTokenizer.from_pretrained("{name}").save_pretrained("FOLDER") the tokenizer'
            " beside them. Then serve FOLDER"
        )
    gguf = [each for each in names if each.endswith(".gguf")]
    if gguf:
        return f"{name} has weights as GGUF only ({_listed(gguf)}): {_GGUF_ADVICE}"
    original = [each for each in names if each.startswith("consolidated")]
    if original:
        return f"{name} has weights as {_listed(original)} only, {_ORIGINAL_ADVICE}"
    other = [each for each in names if each.endswith((".safetensors", *_OTHER_FRAMEWORKS))]
    found = f" ({_listed(other)} are not read)" if other else ""
    return (
        f"{name} has neither model.safetensors nor model.safetensors.index.json{found}: without"
        " weights a model can be planned and compiled, but not run, unless --load-format is dummy"
    )


def damage(file: Path) -> str:
    """Return what is wrong with an unreadable file, and what to do about it."""
    with file.open("rb") as opened:
        start = opened.read(len(_LFS))
    if start == _LFS:
        return "it is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder"
    if not start:
        return "it is empty. Download it again"
    return "it is truncated or corrupt. Download it again"


def broken_tokenizer(folder: Path) -> str:
    """Return which file of a folder keeps its tokenizer from loading, and what to do."""
    for name in _TOKENIZER_SETTINGS:
        if (folder / name).exists() and read_object(folder / name) is None:
            return f"{name} is not a JSON object: {damage(folder / name)}"
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" in names:
        if read_backend(folder / "tokenizer.json") is None:
            return f"tokenizer.json is not a tokenizer: {damage(folder / 'tokenizer.json')}"
        return (
            "tokenizer.json does not match the settings in tokenizer_config.json and config.json."
            " Download all three from the same repository"
        )
    if "tokenizer.model" in names:
        if "tokenizer_config.json" in names and is_model(folder / "tokenizer.model"):
            return (
                "tokenizer.model does not match the settings in tokenizer_config.json."
                " Download both from the same repository"
            )
        return f"tokenizer.model is not a SentencePiece model: {damage(folder / 'tokenizer.model')}"
    settings = read_object(folder / "tokenizer_config.json") or {}
    if "auto_map" in settings:
        return (
            "it needs custom code (auto_map in tokenizer_config.json), which jaxserve does not run."
            " Give a folder with a tokenizer.json by --tokenizer"
        )
    return (
        "it has neither tokenizer.json nor tokenizer.model. Give the folder of a tokenizer by"
        " --tokenizer"
    )


def read_backend(path: Path) -> Backend | None:
    """Return the tokenizer in a `tokenizer.json`; None if it cannot be read."""
    try:
        return Backend.from_file(str(path))
    except Exception:  # noqa: BLE001  (tokenizers raises nothing narrower)
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if it cannot be read or is not an object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_TOKENIZER_SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LFS = b"version https://git-lfs"


def _adapter(folder: Path, name: str) -> str:
    try:
        found = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        base = found["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        base = None
    of_base = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"{name} is a LoRA adapter{of_base} (adapter_config.json), not a model. Merge it into its"
        " base with PEFT's merge_and_unload, save that, and give its folder"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
