"""Qwen3-Next: gated delta nets, with gated attention in every fourth layer (Qwen, 2025)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.qwen_hybrid import (
    delta_of,
    delta_tensors,
    delta_widths,
    hybrid_config,
    shared_expert_tensors,
    shared_experts,
)
from jaxserve.models.weights import HfTensor, Parts, Widths, llama_tensors
from jaxserve.quantization.layout import Path

_DEFAULTS = {
    "intermediate_size": 5632,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS)
    config = hybrid_config(reader, kv_heads=2)
    if reader.optional_integer("num_experts", low=0) == 0:
        return config
    renormalize = reader.flag("norm_topk_prob", default=True)
    return shared_experts(reader, config, renormalize=renormalize)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    delta = delta_of(config)
    more: Parts = shared_expert_tensors()
    widths: Widths = {}
    if delta is not None:
        widths = delta_widths(delta)
        more = {
            **more,
            **delta_tensors(delta),
            "attention.qkvz": [("linear_attn.in_proj_qkvz.weight", "key_heads qkvz, embed")],
            "attention.rates": [("linear_attn.in_proj_ba.weight", "key_heads rates, embed")],
        }
    return llama_tensors(config, more=more, widths=widths)
