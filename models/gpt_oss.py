"""gpt-oss: attention sinks, alternating windows, experts with clamped SwiGLU (arXiv:2508.10925)."""

from collections.abc import Mapping

from jaxserve.layers.activation import ClampedSwiglu
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, read_layer_types, windows_of, with_mixers
from jaxserve.models.hf_moe import read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

_DEFAULTS = {"rope_theta": 150000.0, "rms_norm_eps": 1e-5}
_DEFAULT_ROPE = {
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
}
# Columns of gate and up projection alternate in them.
_STACK = ("mlp.experts.gate_up_proj", "experts, embed, ffw")
_BIASES = ("mlp.experts.gate_up_proj_bias", "experts, ffw")
_TENSORS: Parts = {
    "attention.sinks": [("self_attn.sinks", "heads")],
    "mlp.router.weight": [("mlp.router.weight", "experts, embed")],
    "mlp.router.bias": [("mlp.router.bias", "experts")],
    "mlp.experts.gate": [Stored(*_STACK, cut=Cut(0, 2, dim=2, outer=1))],
    "mlp.experts.up": [Stored(*_STACK, cut=Cut(1, 2, dim=2, outer=1))],
    "mlp.experts.gate_bias": [Stored(*_BIASES, cut=Cut(0, 2, dim=1, outer=1))],
    "mlp.experts.up_bias": [Stored(*_BIASES, cut=Cut(1, 2, dim=1, outer=1))],
    "mlp.experts.down": [("mlp.experts.down_proj", "experts, ffw, embed")],
    "mlp.experts.down_bias": [("mlp.experts.down_proj_bias", "experts, embed")],
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    has_rope = hf.get("rope_scaling") or hf.get("rope_parameters")
    reader = HfConfig(hf, defaults=_DEFAULTS if has_rope else {**_DEFAULTS, **_DEFAULT_ROPE})
    attention_bias = reader.flag("attention_bias", default=True)
    window = reader.optional_integer("sliding_window", default=128)
    config = decoder_config(
        reader,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        head_dim=64,
        sliding_windows=windows_of(read_layer_types(reader, full_every=2), window),
    )
    experts = MixtureOfExperts(
        routing=read_routing(reader, num_experts="num_local_experts", bias=True),
        embed=config.embed,
        ffw=reader.integer("intermediate_size"),
        activation=ClampedSwiglu(
            alpha=reader.number("swiglu_alpha", default=1.702),
            limit=reader.number("swiglu_limit", default=7.0),
        ),
        bias=True,
    )
    return with_experts(with_mixers(config, sinks=True), experts)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=_TENSORS)
