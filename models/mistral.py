"""Mistral: Llama with a sliding window in every layer (Jiang et al., 2023, arXiv:2310.06825)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    # All layers of Mistral are alike; models with mixed layers have model_type ministral.
    reader.only("layer_types", None)
    window = reader.optional_integer("sliding_window", default=4096)
    return decoder_config(
        reader, sliding_windows=(window,) * reader.integer("num_hidden_layers"), kv_heads=8
    )
