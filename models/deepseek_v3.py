"""DeepSeek-V3 and R1: DeepSeek-V2 with another router (DeepSeek-AI, 2024, arXiv:2412.19437)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_latent import dense_only, latent_config
from jaxserve.models.hf_latent import latent_tensors as hf_tensors
from jaxserve.models.hf_reader import HfConfig

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    reader.only("pretraining_tp", 1, None)
    return latent_config(reader, q_rank=1536, feed_forward=dense_only(reader, default=3))
