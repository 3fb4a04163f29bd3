"""Ministral 3: Mistral with YaRN, and queries that grow with their position."""

from collections.abc import Mapping

from jaxserve.layers.rope import TemperatureScaling
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, with_mixers
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5})
    reader.only("layer_types", None)
    window = reader.optional_integer("sliding_window")
    windows = (window,) * reader.integer("num_hidden_layers")
    config = decoder_config(reader, head_dim=128, sliding_windows=windows)
    rope = reader.section("rope_parameters") or HfConfig({}, where="rope_parameters")
    temperature = TemperatureScaling(
        beta=rope.number("llama_4_scaling_beta"),
        original_max_position=rope.integer("original_max_position_embeddings"),
    )
    return with_mixers(config, temperature=temperature)
