"""Mixtral: Mistral with mixtures of experts (Jiang et al., 2024, arXiv:2401.04088)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_moe import expert_tensors, read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import HfTensor, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5})
    window = reader.optional_integer("sliding_window")
    windows = (window,) * reader.integer("num_hidden_layers")
    config = decoder_config(reader, sliding_windows=windows, kv_heads=8)
    experts = MixtureOfExperts(
        routing=read_routing(reader, num_experts="num_local_experts", renormalize=True),
        embed=config.embed,
        ffw=reader.integer("intermediate_size"),
    )
    return with_experts(config, experts)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    experts = expert_tensors("block_sparse_moe.", gate="w1", up="w3", down="w2")
    return llama_tensors(config, more=experts)
