"""DeepSeek-V3 and R1: DeepSeek-V2 with another router (DeepSeek-AI, 2024, arXiv:2412.19437)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_latent import groups_of, latent_config, with_deepseek_experts
from jaxserve.models.hf_latent import latent_tensors as hf_tensors
from jaxserve.models.hf_reader import HfConfig

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"q_lora_rank": 1536, "first_k_dense_replace": 3})
    reader.only("pretraining_tp", 1, None)
    reader.only("scoring_func", "sigmoid")
    reader.only("topk_method", "noaux_tc")
    return with_deepseek_experts(
        latent_config(reader),
        reader,
        scoring="sigmoid",
        correction_bias=True,
        renormalize=reader.flag("norm_topk_prob", default=True),
        **groups_of(reader),
    )
