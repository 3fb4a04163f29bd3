"""Qwen2 and Qwen2.5: biases on query, key and value (Yang et al., 2024, arXiv:2407.10671)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, qwen_windows
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    return decoder_config(reader, qkv_bias=True, sliding_windows=qwen_windows(reader))
