"""The text part of Qwen3.5 and 3.6 with mixtures of experts (Qwen, 2026)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_moe import stacked_tensors
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.qwen3_5_text import hf_tensors
from jaxserve.models.qwen_hybrid import hybrid_config, shared_experts
from jaxserve.models.weights import HfTensor, Stored
from jaxserve.quantization.layout import Path

__all__ = ["config_from_hf", "hf_tensors", "other_tensors"]

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
    """Return the tensors of experts in checkpoints that stack them; see models.hf_tensors.

    transformers saves experts one by one.
    """
    stacks = {path: Stored(*each) for path, (each,) in stacked_tensors(config).items()}
    return {
        ("layers", layer, *path.split(".")): (
            HfTensor(
                f"model.layers.{layer}.{name}",
                tuple(tuple(dim.split()) for dim in dims.split(",")),
                cut=cut,
            ),
        )
        for layer in range(config.num_layers)
        for path, (name, dims, cut, _) in stacks.items()
    }
