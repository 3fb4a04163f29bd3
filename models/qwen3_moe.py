"""Qwen3 with mixtures of experts (Yang et al., 2025, arXiv:2505.09388)."""

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
    reader = HfConfig(hf)
    attention_bias = reader.flag("attention_bias", default=False)
    slides = reader.flag("use_sliding_window", default=False)
    window = reader.optional_integer("sliding_window", default=4096) if slides else None
    num_layers = reader.integer("num_hidden_layers")
    config = decoder_config(
        reader,
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        sliding_windows=(window,) * num_layers,
    )
    experts = MixtureOfExperts(
        routing=read_routing(
            reader,
            num_experts="num_experts",
            renormalize=reader.flag("norm_topk_prob", default=False),
        ),
        embed=config.embed,
        ffw=reader.integer("moe_intermediate_size"),
    )
    step = reader.integer("decoder_sparse_step", default=1)
    dense_layers = set(reader.integers("mlp_only_layers") or ())
    dense_layers |= {i for i in range(num_layers) if (i + 1) % step}
    return with_experts(config, experts, dense_layers=dense_layers)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=expert_tensors())
