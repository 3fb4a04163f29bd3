"""Mistral 4: DeepSeek-V2's layers, with queries that grow with their position."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import TemperatureScaling
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_latent import (
    groups_of,
    latent_config,
    latent_tensors,
    with_deepseek_experts,
)
from jaxserve.models.hf_moe import stacked_tensors
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import read_rope
from jaxserve.models.weights import HfTensor
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"q_lora_rank": 1024})
    reader.only("pretraining_tp", 1, None)
    rope_dim = reader.integer("qk_rope_head_dim")
    share = rope_dim / (rope_dim + reader.integer("qk_nope_head_dim"))
    rope = read_rope(
        reader,
        max_position=reader.integer("max_position_embeddings"),
        partial_rotary_factor=share,
    )
    if rope.partial_rotary_factor != share:
        raise CheckpointError(
            f"partial_rotary_factor must be the share of qk_rope_head_dim ({share}), got"
            f" {rope.partial_rotary_factor}"
        )
    settings = reader.section("rope_parameters") or HfConfig({}, where="rope_parameters")
    config = latent_config(
        reader,
        rope=replace(rope, partial_rotary_factor=1.0),
        temperature=TemperatureScaling(
            beta=settings.number("llama_4_scaling_beta"),
            original_max_position=settings.integer("original_max_position_embeddings"),
        ),
    )
    return with_deepseek_experts(
        config,
        reader,
        renormalize=reader.flag("norm_topk_prob", default=True),
        **groups_of(reader),
    )


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return latent_tensors(config, more=stacked_tensors(config))
