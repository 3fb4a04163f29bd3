"""Read configurations and name tensors of families with multi-head latent attention."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import Rope, TemperatureScaling
from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_moe import expert_tensors, read_routing, shared_tensors, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import read_rope
from jaxserve.models.latent import LatentAttention, MultiHeadLatent
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

# transformers leaves this default of its norms unchanged, whatever rms_norm_eps is.
_NORM_EPS = 1e-6


def latent_config(
    reader: HfConfig,
    *,
    rope: Rope | None = None,
    temperature: TemperatureScaling | None = None,
    mlp_bias: bool = False,
) -> DecoderConfig:
    """Read the keys that families with latent attention share, for layers that are all dense.

    rope: rotation of the last qk_rope_head_dim dimensions of a head, by default that of the file.
    Layers after the last one, which predict further tokens, are skipped.
    """
    heads, rope_dim = reader.integer("num_attention_heads"), reader.integer("qk_rope_head_dim")
    if rope_dim % 2:
        raise CheckpointError(f"qk_rope_head_dim must be even for rotary positions, got {rope_dim}")
    reader.only("num_key_value_heads", heads, None)
    if rope is None:
        rope = read_rope(reader, max_position=reader.integer("max_position_embeddings"))
    config = decoder_config(
        reader,
        head_dim=rope_dim,
        mlp_bias=mlp_bias,
        ropes=(rope,) * reader.integer("num_hidden_layers"),
    )
    nope_dim = reader.integer("qk_nope_head_dim")
    mixer = MultiHeadLatent(
        module=LatentAttention,
        heads=heads,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=reader.integer("v_head_dim"),
        kv_rank=reader.integer("kv_lora_rank"),
        q_rank=reader.optional_integer("q_lora_rank"),
        scale=(nope_dim + rope_dim) ** -0.5 * rope.score_factor,
        rope=rope,
        norm_eps=_NORM_EPS,
        bias=reader.flag("attention_bias", default=False),
        temperature=temperature,
        is_interleaved=reader.flag("rope_interleave", default=True),
    )
    num_further = reader.optional_integer("num_nextn_predict_layers", low=0) or 1
    further = range(config.num_layers, config.num_layers + num_further)
    return replace(
        config,
        layers=tuple(replace(layer, mixer=mixer) for layer in config.layers),
        skipped_tensors=tuple(f"model.layers.{i}." for i in further),
    )


def with_deepseek_experts(
    config: DecoderConfig,
    reader: HfConfig,
    *,
    dense_layers: Collection[int] | None = None,
    **fixed: Any,
) -> DecoderConfig:
    """Return the model with the experts of DeepSeek's families, read from the file.

    dense_layers: layers without experts, by default the first `first_k_dense_replace`. fixed: other
    fields of Routing.
    """
    reader.only("moe_layer_freq", 1)
    if dense_layers is None:
        dense_layers = range(reader.optional_integer("first_k_dense_replace", low=0) or 0)
    if len(dense_layers) >= config.num_layers:
        return config
    routing = read_routing(
        reader,
        num_experts="n_routed_experts",
        scaling_factor=reader.number("routed_scaling_factor", default=1.0),
        **fixed,
    )
    ffw = reader.integer("moe_intermediate_size")
    dense, num_shared = config.layers[0].feed_forward, reader.optional_integer("n_shared_experts")
    assert isinstance(dense, Dense)
    experts = MixtureOfExperts(
        routing=routing,
        embed=config.embed,
        ffw=ffw,
        shared=None if num_shared is None else replace(dense, ffw=ffw * num_shared),
    )
    return with_experts(config, experts, dense_layers=dense_layers)


def groups_of(reader: HfConfig) -> dict[str, Any]:
    """Return the fields of Routing that limit a token to some groups of experts."""
    return {
        "groups": reader.integer("n_group", default=1),
        "top_groups": reader.integer("topk_group", default=1),
    }


def latent_tensors(
    config: DecoderConfig, *, more: Parts | None = None
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter; more: as in `llama_tensors`."""
    mixer = config.layers[0].mixer
    assert isinstance(mixer, MultiHeadLatent)
    queries = "q_proj" if mixer.q_rank is None else "q_b_proj"
    summed = "embed" if mixer.q_rank is None else "q_rank"
    of_head = mixer.nope_dim + mixer.value_dim
    tensors: Parts = {
        "attention.q_a": [("self_attn.q_a_proj.weight", "q_rank, embed")],
        "attention.q_a_bias": [("self_attn.q_a_proj.bias", "q_rank")],
        "attention.q_norm.weight": [("self_attn.q_a_layernorm.weight", "q_rank")],
        "attention.q": _turned(
            mixer, f"self_attn.{queries}.weight", "heads {}, " + summed, "query_dim"
        ),
        "attention.kv_a": _turned(
            mixer, "self_attn.kv_a_proj_with_mqa.weight", "{}, embed", "latent"
        ),
        "attention.kv_a_bias": _turned(mixer, "self_attn.kv_a_proj_with_mqa.bias", "{}", "latent"),
        "attention.kv_norm.weight": [("self_attn.kv_a_layernorm.weight", "kv_rank")],
        "attention.k_b": [
            Stored("self_attn.kv_b_proj.weight", "heads nope_dim, kv_rank", Cut(0, of_head, 0, 1))
        ],
        "attention.v_b": [
            Stored(
                "self_attn.kv_b_proj.weight",
                "heads value_dim, kv_rank",
                Cut(mixer.nope_dim, of_head, 0, 1),
            )
        ],
        "attention.o": [("self_attn.o_proj.weight", "embed, heads value_dim")],
        **expert_tensors(),
        "mlp.router.correction_bias": [("mlp.gate.e_score_correction_bias", "experts")],
        **shared_tensors(),
    }
    widths = {
        "query_dim": (mixer.nope_dim, mixer.rope_dim),
        "latent": (mixer.kv_rank, mixer.rope_dim),
    }
    return llama_tensors(config, more={**tensors, **(more or {})}, widths=widths)


def _turned(mixer: MultiHeadLatent, name: str, dims: str, axis: str) -> list[Stored]:
    """Return a tensor whose axis `axis` ends in dimensions that are rotated.

    dims: as in Stored, with {} for the axis. Interleaved checkpoints store the two dimensions of a
    pair next to each other; `rotate` expects all first ones before all second ones.
    """
    if not mixer.is_interleaved:
        return [Stored(name, dims.format(axis))]
    total = {"query_dim": mixer.query_dim, "latent": mixer.latent_dim}[axis]
    outer = dims.split(",", maxsplit=1)[0].split().index("{}")
    halves = (axis, (("halves", 2), ("pairs", mixer.rope_dim // 2)))
    return [
        Stored(name, dims.format(axis), Cut(0, total, 0, outer)),
        Stored(
            name,
            dims.format("pairs halves"),
            Cut(total - mixer.rope_dim, total, 0, outer),
            (halves,),
        ),
    ]
