"""Read configurations and name tensors of families with multi-head latent attention."""

from collections.abc import Callable
from dataclasses import replace

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import YarnRope
from jaxserve.models.config import DecoderConfig, Dense, FeedForward
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.latent import LatentAttention, MultiHeadLatent
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

# transformers leaves this default of its norms unchanged, whatever rms_norm_eps is.
_NORM_EPS = 1e-6


def latent_config(
    reader: HfConfig,
    *,
    q_rank: int,
    feed_forward: Callable[[int, Dense], FeedForward],
    mlp_bias: bool = False,
) -> DecoderConfig:
    """Read the keys that families with latent attention share.

    q_rank: default of q_lora_rank. feed_forward: called with the index of each layer, and with its
    feed-forward if it is dense. Layers after the last one, which predict several tokens ahead, are
    not loaded.
    """
    rope_dim = reader.integer("qk_rope_head_dim")
    if rope_dim % 2:
        raise CheckpointError(f"qk_rope_head_dim must be even for rotary positions, got {rope_dim}")
    config = decoder_config(reader, head_dim=rope_dim, mlp_bias=mlp_bias)
    heads, rope = reader.integer("num_attention_heads"), config.rope
    assert rope is not None
    kv_heads = reader.optional_integer("num_key_value_heads") or heads
    if kv_heads != heads:
        raise CheckpointError(
            f"config.json has num_key_value_heads = {kv_heads}; latent attention has as many as"
            f" num_attention_heads ({heads})"
        )
    nope_dim = reader.integer("qk_nope_head_dim")
    scale = (nope_dim + rope_dim) ** -0.5
    if isinstance(rope, YarnRope):
        scale *= rope.score_factor
    mixer = MultiHeadLatent(
        module=LatentAttention,
        heads=heads,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=reader.integer("v_head_dim"),
        kv_rank=reader.integer("kv_lora_rank"),
        q_rank=reader.optional_integer("q_lora_rank", default=q_rank),
        scale=scale,
        rope=rope,
        norm_eps=_NORM_EPS,
        bias=reader.flag("attention_bias", default=False),
        is_interleaved=reader.flag("rope_interleave", default=True),
    )
    layers = []
    for number, layer in enumerate(config.layers):
        assert isinstance(layer.feed_forward, Dense)
        inner = feed_forward(number, layer.feed_forward)
        layers.append(replace(layer, mixer=mixer, feed_forward=inner))
    num_ahead = reader.optional_integer("num_nextn_predict_layers", low=0) or 1
    ahead = range(config.num_layers, config.num_layers + num_ahead)
    return replace(
        config, layers=tuple(layers), skipped_tensors=tuple(f"model.layers.{i}." for i in ahead)
    )


def dense_only(reader: HfConfig, *, default: int) -> Callable[[int, Dense], FeedForward]:
    """Return the feed-forward of models whose layers are all dense; raises CheckpointError."""
    num_dense = reader.optional_integer("first_k_dense_replace", default=default, low=0) or 0
    num_layers = reader.integer("num_hidden_layers")
    if num_dense < num_layers:
        raise CheckpointError(
            f"config.json has first_k_dense_replace = {num_dense}; jaxserve supports dense layers,"
            f" from num_hidden_layers ({num_layers}) up"
        )
    return lambda _, dense: dense


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
