"""The text part of Qwen3.5 and 3.6 with mixtures of experts (Qwen, 2026)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.qwen3_5_text import hf_tensors
from jaxserve.models.qwen_hybrid import hybrid_config, shared_experts
from jaxserve.models.weights import HfTensor
from jaxserve.quantization.layout import Path

__all__ = ["config_from_hf", "hf_tensors", "other_tensors"]

# Experts as the publisher stores them, in one tensor; transformers saves them one by one.
_STACKED = {
    "gate_up": ("gate_up_proj", (("experts",), ("gate_up", "ffw"), ("embed",))),
    "down": ("down_proj", (("experts",), ("embed",), ("ffw",))),
}

_DEFAULTS = {
    # Width of dense layers, which these models do not have.
    "intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS)
    return shared_experts(reader, hybrid_config(reader, kv_heads=2), renormalize=True)


def other_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the tensors of experts in checkpoints that stack them; see models.hf_tensors."""
    return {
        ("layers", layer, "mlp", "experts", name): (
            HfTensor(f"model.layers.{layer}.mlp.experts.{stored}", dims),
        )
        for layer in range(config.num_layers)
        for name, (stored, dims) in _STACKED.items()
    }
