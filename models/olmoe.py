"""OLMoE: mixtures of experts, all queries and all keys normalized (arXiv:2409.02060)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, with_mixers
from jaxserve.models.hf_moe import expert_tensors, read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import JOINT_QK_NORMS, HfTensor, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rms_norm_eps": 1e-5})
    reader.only("clip_qkv", None)
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader, qkv_bias=attention_bias, output_bias=attention_bias, qk_norm=True
    )
    experts = MixtureOfExperts(
        routing=read_routing(
            reader,
            num_experts="num_experts",
            renormalize=reader.flag("norm_topk_prob", default=False),
        ),
        embed=config.embed,
        ffw=reader.integer("intermediate_size"),
    )
    return with_experts(with_mixers(config, joint_qk_norm=True), experts)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more={**JOINT_QK_NORMS, **expert_tensors()})
