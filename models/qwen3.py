"""Qwen3: queries and keys normalised per head, no biases (Yang et al., 2025, arXiv:2505.09388)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, qwen_windows
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    attention_bias = reader.flag("attention_bias", default=False)
    return decoder_config(
        reader,
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        head_dim=128,
        sliding_windows=qwen_windows(reader),
    )
