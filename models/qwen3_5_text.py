"""The text part of Qwen3.5, 3.6 and 3.8: Qwen3-Next with separate projections (Qwen, 2026)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.qwen_hybrid import (
    conv_cuts,
    delta_of,
    delta_tensors,
    delta_widths,
    hybrid_config,
    shared_expert_tensors,
)
from jaxserve.models.weights import HfTensor, Parts, Stored, Widths, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    return hybrid_config(HfConfig(hf), kv_heads=4)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    delta = delta_of(config)
    more: Parts = shared_expert_tensors()
    widths: Widths = {}
    if delta is not None:
        widths = delta_widths(delta)
        qkv, rows = "linear_attn.in_proj_qkv.weight", "key_heads qkvz, embed"
        more = {
            **more,
            **delta_tensors(delta),
            "attention.qkvz": [
                *(Stored(qkv, rows, cut) for cut in conv_cuts(delta)),
                ("linear_attn.in_proj_z.weight", rows),
            ],
            "attention.rates": [
                ("linear_attn.in_proj_b.weight", "key_heads rates, embed"),
                ("linear_attn.in_proj_a.weight", "key_heads rates, embed"),
            ],
        }
    return llama_tensors(config, more=more, widths=widths)
