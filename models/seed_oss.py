"""Seed-OSS: Llama with biases on query, key and value (ByteDance Seed team, 2025)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    reader.only("pretraining_tp", 1, None)
    return decoder_config(
        reader,
        qkv_bias=reader.flag("attention_bias", default=True),
        output_bias=reader.flag("attention_out_bias", default=False),
        mlp_bias=reader.flag("mlp_bias", default=False),
        head_dim=128,
        kv_heads=8,
    )
