"""Text parts of multimodal checkpoints; the towers of other modalities are skipped."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig

# Keys that apply to the text part if only the whole config has them.
_INHERITED = ("tie_word_embeddings",)


def text_config(hf: Mapping[str, object]) -> dict[str, object]:
    """Return the config of the text part. Raises CheckpointError if it is missing."""
    text = hf.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(
            f"config.json has model_type = {hf.get('model_type')!r} and text_config = {text!r};"
            " jaxserve supports objects"
        )
    found = {key: hf[key] for key in _INHERITED if key in hf} | text
    # Architectures of whole models end in ForConditionalGeneration; classifiers have a head of
    # their own.
    names = hf.get("architectures")
    if isinstance(names, list) and str(names[:1]).endswith("ForSequenceClassification']"):
        found["architectures"] = names
    return found


def without_parts(config: DecoderConfig, *parts: str) -> DecoderConfig:
    """Return the model with tensors of other modalities skipped.

    parts: names of the modules that contain them, with or without the prefix `model`.
    """
    prefixes = tuple(f"{base}{part}." for part in parts for base in ("", "model."))
    return replace(config, skipped_tensors=config.skipped_tensors + prefixes)
