"""Granite 3 and 4 dense: Llama with multipliers (IBM Granite team, 2024; muP, arXiv:2203.03466)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, with_layers, with_mixers
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=reader.flag("mlp_bias", default=False),
    )
    return with_multipliers(config, reader)


def with_multipliers(config: DecoderConfig, reader: HfConfig) -> DecoderConfig:
    """Return the model with the multipliers in the file."""
    residual = reader.number("residual_multiplier", default=1.0)
    config = with_mixers(config, scale=reader.number("attention_multiplier", default=1.0))
    config = with_layers(config, lambda layer: replace(layer, residual_multiplier=residual))
    return replace(
        config,
        embedding_multiplier=reader.number("embedding_multiplier", default=1.0),
        logit_multiplier=1 / reader.number("logits_scaling", default=1.0),
    )
