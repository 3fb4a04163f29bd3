"""Gemma 4 with towers for images and sound: its language model."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.gemma4_text import config_from_hf as text_from_hf
from jaxserve.models.gemma4_text import hf_tensors
from jaxserve.models.multimodal import text_config, without_parts

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    config = text_from_hf({"model_type": "gemma4_text", **text_config(hf)})
    return without_parts(config, "vision_tower", "audio_tower", "embed_vision", "embed_audio")
