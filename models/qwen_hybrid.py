"""Parts that Qwen3-Next and Qwen3.5 share: config keys, and tensors stored alike."""

from dataclasses import replace

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.gated_delta import GatedDelta
from jaxserve.models.hf_config import (
    Modules,
    decoder_config,
    read_layer_types,
    with_mixers,
)
from jaxserve.models.hf_moe import expert_tensors, read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL
from jaxserve.models.mlp import MLP
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.multimodal import without_parts
from jaxserve.models.norm import OffsetRMSNorm
from jaxserve.models.weights import Cut, Parts, Stored, Widths

_LINEAR = "linear_attention"
_MODULES = Modules(norm=OffsetRMSNorm, final_norm=OffsetRMSNorm)


def hybrid_config(reader: HfConfig, *, kv_heads: int) -> DecoderConfig:
    """Read a `config.json` whose layers are gated delta nets or gated attention.

    kv_heads: default of num_key_value_heads.
    """
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        modules=_MODULES,
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        head_dim=256,
        kv_heads=kv_heads,
        partial_rotary_factor=0.25,
    )
    config = with_mixers(config, output_gate=True)
    delta = _delta(reader)
    kinds = read_layer_types(
        reader,
        full_every=reader.integer("full_attention_interval", default=4),
        known=(_LINEAR, FULL),
    )
    layers = tuple(
        layer if kind == FULL else replace(layer, mixer=delta)
        for kind, layer in zip(kinds, config.layers, strict=True)
    )
    # Layers that predict several tokens at once are not served.
    return without_parts(replace(config, layers=layers), "mtp")


def shared_experts(reader: HfConfig, config: DecoderConfig, *, renormalize: bool) -> DecoderConfig:
    """Return the model with experts, and one shared expert behind a gate, in its layers.

    renormalize: see Routing. mlp_only_layers and decoder_sparse_step leave layers dense.
    """
    routing = read_routing(reader, num_experts="num_experts", renormalize=renormalize)
    experts = MixtureOfExperts(
        routing=routing,
        embed=config.embed,
        ffw=reader.integer("moe_intermediate_size"),
        shared=Dense(module=MLP, ffw=reader.integer("shared_expert_intermediate_size")),
        shared_gate=True,
    )
    step = reader.integer("decoder_sparse_step", default=1)
    dense_layers = set(reader.integers("mlp_only_layers") or ())
    dense_layers |= {i for i in range(config.num_layers) if (i + 1) % step}
    return with_experts(config, experts, dense_layers=dense_layers)


def shared_expert_tensors() -> Parts:
    """Return the tensors of experts and of the shared one, which has a gate."""
    shared = "mlp.shared_expert"
    return {
        **expert_tensors(),
        "mlp.shared.gate_up": [
            (f"{shared}.gate_proj.weight", "gate_up ffw, embed"),
            (f"{shared}.up_proj.weight", "gate_up ffw, embed"),
        ],
        "mlp.shared.down": [(f"{shared}.down_proj.weight", "embed, ffw")],
        "mlp.shared_gate": [("mlp.shared_expert_gate.weight", ",embed")],
    }


def _delta(reader: HfConfig) -> GatedDelta:
    key_heads = reader.integer("linear_num_key_heads", default=16)
    value_heads = reader.integer("linear_num_value_heads", default=32)
    if value_heads % key_heads:
        raise CheckpointError(
            "linear_num_value_heads must be a multiple of linear_num_key_heads, got"
            f" {value_heads} and {key_heads}"
        )
    return GatedDelta(
        key_heads=key_heads,
        group=value_heads // key_heads,
        key_dim=reader.integer("linear_key_head_dim", default=128),
        value_dim=reader.integer("linear_value_head_dim", default=128),
        taps=reader.integer("linear_conv_kernel_dim", default=4),
    )


def delta_of(config: DecoderConfig) -> GatedDelta | None:
    """Return the description of the gated delta nets of a model; None without any."""
    mixers = (layer.mixer for layer in config.layers)
    return next((mixer for mixer in mixers if isinstance(mixer, GatedDelta)), None)


def conv_cuts(delta: GatedDelta) -> tuple[Cut, Cut, Cut]:
    """Return the rows of queries, keys and values in a tensor that has them one after the other."""
    keys = delta.key_heads * delta.key_dim
    total = delta.key_heads * delta.conv_channels
    return Cut(0, total), Cut(keys, total), Cut(2 * keys, total)


def delta_tensors(delta: GatedDelta) -> Parts:
    """Return the tensors of a gated delta net that both families store alike."""
    return {
        "attention.conv": [
            Stored("linear_attn.conv1d.weight", "key_heads channels,,taps", cut)
            for cut in conv_cuts(delta)
        ],
        "attention.log_speed": [("linear_attn.A_log", "key_heads group")],
        "attention.step_bias": [("linear_attn.dt_bias", "key_heads group")],
        "attention.norm.weight": [("linear_attn.norm.weight", "head_dim")],
        "attention.out": [("linear_attn.out_proj.weight", "embed, key_heads group head_dim")],
    }


def delta_widths(delta: GatedDelta) -> Widths:
    """Return the length of each tensor of a joined parameter of a gated delta net."""
    values = delta.group * delta.value_dim
    qkv = (delta.key_dim, delta.key_dim, values)
    return {"channels": qkv, "qkvz": (*qkv, values), "rates": (delta.group, delta.group)}
