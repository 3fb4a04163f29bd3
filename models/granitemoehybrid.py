"""Granite 4: Mamba2 and attention layers, dense or with mixtures of experts (IBM, 2025)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.granite import with_multipliers
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_mamba2 import (
    MAMBA,
    heads_of_groups,
    mamba2_tensors,
    mamba2_widths,
    read_kinds,
)
from jaxserve.models.hf_moe import read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import read_rope
from jaxserve.models.mamba2 import Mamba2
from jaxserve.models.mlp import MLP
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

_DEFAULTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_SHARED: Parts = {
    "gate_up": [("shared_mlp.input_linear.weight", "gate_up ffw, embed")],
    "down": [("shared_mlp.output_linear.weight", "embed, ffw")],
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS)
    reader.only("normalization_function", "rmsnorm", None)
    reader.only("position_embedding_type", "rope", "nope", None)
    kinds = _kinds(reader)
    rope = None
    if reader.word("position_embedding_type") == "rope":
        rope = read_rope(reader, max_position=reader.integer("max_position_embeddings"))
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader, qkv_bias=attention_bias, output_bias=attention_bias, ropes=(rope,) * len(kinds)
    )
    config = with_multipliers(config, reader)
    shared = Dense(module=MLP, ffw=reader.integer("shared_intermediate_size", default=1024))
    mamba = _mamba(reader, config.embed) if MAMBA in kinds else None
    layers = tuple(
        replace(layer, feed_forward=shared, mixer=layer.mixer if mamba is None else mamba)
        if kind == MAMBA
        else replace(layer, feed_forward=shared)
        for kind, layer in zip(kinds, config.layers, strict=True)
    )
    config = replace(config, layers=layers)
    if reader.optional_integer("num_local_experts", low=0) == 0:
        return config
    experts = MixtureOfExperts(
        routing=read_routing(reader, num_experts="num_local_experts"),
        embed=config.embed,
        ffw=reader.integer("intermediate_size"),
        shared=shared,
    )
    return with_experts(config, experts)


def _kinds(reader: HfConfig) -> tuple[str, ...]:
    num_layers = reader.integer("num_hidden_layers")
    kinds = read_kinds(reader, "layer_types") or read_kinds(reader, "layers_block_type")
    kinds = kinds or (MAMBA,) * num_layers
    if len(kinds) != num_layers:
        raise CheckpointError(
            f"layer_types must name num_hidden_layers ({num_layers}) layers, got {len(kinds)}"
        )
    return kinds


def _mamba(reader: HfConfig, embed: int) -> Mamba2:
    heads = reader.integer("mamba_n_heads", default=128)
    groups = reader.integer("mamba_n_groups", default=1)
    values = reader.integer("mamba_expand", default=2) * embed
    if values % heads:
        raise CheckpointError(
            f"mamba_n_heads must divide mamba_expand * hidden_size ({values}), got {heads}"
        )
    reader.only("mamba_d_head", "auto", None, values // heads)
    least_step, most_step = reader.interval("time_step_limit") or (0.0, float("inf"))
    return Mamba2(
        groups=groups,
        heads=heads_of_groups(heads, groups, names=("mamba_n_heads", "mamba_n_groups")),
        head_dim=values // heads,
        state_dim=reader.integer("mamba_d_state", default=256),
        taps=reader.integer("mamba_d_conv", default=4, low=2),
        bias=reader.flag("mamba_proj_bias", default=False),
        conv_bias=reader.flag("mamba_conv_bias", default=True),
        least_step=least_step,
        most_step=most_step,
    )


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    parts = [layer.feed_forward for layer in config.layers]
    ffw = next((part.ffw for part in parts if isinstance(part, MixtureOfExperts)), None)
    own = "mlp." if ffw is None else "mlp.shared."
    more: Parts = {
        **mamba2_tensors(config, "mamba."),
        **{f"{own}{name}": stored for name, stored in _SHARED.items()},
        **({} if ffw is None else _expert_tensors(ffw)),
    }
    return llama_tensors(config, more=more, widths=mamba2_widths(config))


def _expert_tensors(ffw: int) -> Parts:
    """Return the tensors of experts, which are stored as stacks."""
    prefix = "block_sparse_moe."
    stack = (f"{prefix}input_linear.weight", "experts, ffw, embed")
    return {
        "mlp.router.weight": [(f"{prefix}router.layer.weight", "experts, embed")],
        "mlp.experts.gate": [Stored(*stack, cut=Cut(0, 2 * ffw, dim=1))],
        "mlp.experts.up": [Stored(*stack, cut=Cut(ffw, 2 * ffw, dim=1))],
        "mlp.experts.down": [(f"{prefix}output_linear.weight", "experts, embed, ffw")],
    }
