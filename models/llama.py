"""Llama and compatible models (Touvron et al., 2023, arXiv:2302.13971)."""

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
    attention_bias = reader.flag("attention_bias", default=False)
    return decoder_config(
        reader,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=reader.flag("mlp_bias", default=False),
    )
