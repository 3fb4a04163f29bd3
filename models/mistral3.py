"""Mistral 3 with a vision tower, such as Mistral Small 3.1 and Ministral 3: its language model."""

from collections.abc import Mapping

from jaxserve.models import config_from_hf as text_model
from jaxserve.models.config import DecoderConfig
from jaxserve.models.multimodal import text_config, without_parts
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    text = {"model_type": "mistral", **text_config(hf)}
    return without_parts(text_model(text), "vision_tower", "multi_modal_projector")
