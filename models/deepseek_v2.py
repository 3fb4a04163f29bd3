"""DeepSeek-V2: latent attention, and a mixture of experts (DeepSeek-AI, 2024, arXiv:2405.04434)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_latent import groups_of, latent_config, with_deepseek_experts
from jaxserve.models.hf_latent import latent_tensors as hf_tensors
from jaxserve.models.hf_reader import HfConfig

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"q_lora_rank": 1536})
    reader.only("pretraining_tp", 1, None)
    reader.only("scoring_func", "softmax")
    reader.only("norm_topk_prob", False, None)
    reader.only("topk_method", "greedy", "group_limited_greedy", None)
    config = latent_config(reader, mlp_bias=reader.flag("mlp_bias", default=False))
    # A group is as good as its best expert.
    is_limited = reader.word("topk_method") == "group_limited_greedy"
    groups = {**groups_of(reader), "group_experts": 1} if is_limited else {}
    return with_deepseek_experts(config, reader, renormalize=False, **groups)
