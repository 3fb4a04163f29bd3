"""Qwen3.5 and 3.6 with mixtures of experts as published, with a vision tower that is skipped."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.multimodal import text_config, without_parts
from jaxserve.models.qwen3_5_moe_text import config_from_hf as text_config_from_hf
from jaxserve.models.qwen3_5_moe_text import hf_tensors, other_tensors

__all__ = ["config_from_hf", "hf_tensors", "other_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    text = {"model_type": hf["model_type"]} | text_config(hf)
    return without_parts(text_config_from_hf(text), "visual")
