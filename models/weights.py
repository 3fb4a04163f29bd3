"""Where the parameters of the Llama-shaped families lie in a Hugging Face checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxserve.models.config import DecoderConfig, EncoderConfig, ModelConfig
from jaxserve.models.params import Path, param_axes


@dataclass(frozen=True, slots=True)
class HfTensor:
    """One tensor of a checkpoint: its name, and which of our axes each of its dimensions holds.

    A dimension may hold several of our axes, flattened: o_proj.weight is
    [(embed), (heads, head_dim)]. part: the axis of which it holds only some, and how many, where
    several tensors lie one after the other in a parameter.
    """

    name: str
    dims: tuple[tuple[str, ...], ...]
    part: tuple[str, int] | None = None


# By parameter, the tensors that lie in it, each with what its dimensions hold.
type Parts = Mapping[str, Sequence[tuple[str, str]]]

_TOP: Parts = {
    "embedding": [("model.embed_tokens.weight", "vocab, embed")],
    "final_norm": [("model.norm.weight", "embed")],
    "lm_head": [("lm_head.weight", "vocab, embed")],
    "score": [("score.weight", "labels, embed")],
}
_LAYER: Parts = {
    "attention_norm": [("input_layernorm.weight", "embed")],
    "attention.qkv": [
        ("self_attn.q_proj.weight", "kv_heads qkv head_dim, embed"),
        ("self_attn.k_proj.weight", "kv_heads qkv head_dim, embed"),
        ("self_attn.v_proj.weight", "kv_heads qkv head_dim, embed"),
    ],
    "attention.o": [("self_attn.o_proj.weight", "embed, heads head_dim")],
    "attention.qkv_bias": [
        ("self_attn.q_proj.bias", "kv_heads qkv head_dim"),
        ("self_attn.k_proj.bias", "kv_heads qkv head_dim"),
        ("self_attn.v_proj.bias", "kv_heads qkv head_dim"),
    ],
    "attention.o_bias": [("self_attn.o_proj.bias", "embed")],
    "attention.q_norm": [("self_attn.q_norm.weight", "head_dim")],
    "attention.k_norm": [("self_attn.k_norm.weight", "head_dim")],
    "mlp_norm": [("post_attention_layernorm.weight", "embed")],
    "mlp.gate_up": [
        ("mlp.gate_proj.weight", "gate_up ffw, embed"),
        ("mlp.up_proj.weight", "gate_up ffw, embed"),
    ],
    "mlp.down": [("mlp.down_proj.weight", "embed, ffw")],
    "mlp.gate_up_bias": [
        ("mlp.gate_proj.bias", "gate_up ffw"),
        ("mlp.up_proj.bias", "gate_up ffw"),
    ],
    "mlp.down_bias": [("mlp.down_proj.bias", "embed")],
}
_ENCODER_TOP = {
    "embedding": ("embeddings.word_embeddings.weight", "vocab, embed"),
    "positions": ("embeddings.position_embeddings.weight", "positions, embed"),
    "segments": ("embeddings.token_type_embeddings.weight", "segments, embed"),
    "embedding_norm.weight": ("embeddings.LayerNorm.weight", "embed"),
    "embedding_norm.bias": ("embeddings.LayerNorm.bias", "embed"),
}
_ENCODER_LAYER: Parts = {
    "qkv": [
        ("attention.self.query.weight", "kv_heads qkv head_dim, embed"),
        ("attention.self.key.weight", "kv_heads qkv head_dim, embed"),
        ("attention.self.value.weight", "kv_heads qkv head_dim, embed"),
    ],
    "qkv_bias": [
        ("attention.self.query.bias", "kv_heads qkv head_dim"),
        ("attention.self.key.bias", "kv_heads qkv head_dim"),
        ("attention.self.value.bias", "kv_heads qkv head_dim"),
    ],
    "o": [("attention.output.dense.weight", "embed, heads head_dim")],
    "o_bias": [("attention.output.dense.bias", "embed")],
    "attention_norm.weight": [("attention.output.LayerNorm.weight", "embed")],
    "attention_norm.bias": [("attention.output.LayerNorm.bias", "embed")],
    "up": [("intermediate.dense.weight", "ffw, embed")],
    "up_bias": [("intermediate.dense.bias", "ffw")],
    "down": [("output.dense.weight", "embed, ffw")],
    "down_bias": [("output.dense.bias", "embed")],
    "mlp_norm.weight": [("output.LayerNorm.weight", "embed")],
    "mlp_norm.bias": [("output.LayerNorm.bias", "embed")],
}


def llama_tensors(
    config: DecoderConfig, *, more: Parts | None = None
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter of a decoder.

    more: of parameters of a layer that are a family's own, by their path in it: the names of their
    tensors in the checkpoint's layer, and the axes of each dimension.
    """
    return _tensors(config, _TOP, {**_LAYER, **(more or {})}, layers="model.layers")


def encoder_tensors(
    config: EncoderConfig, *, base: str, dense: str, score: str
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter of an encoder.

    base: what its tensors' names begin with. dense, score: where the head's two products are.
    """
    top = {
        **{path: [(f"{base}.{name}", dims)] for path, (name, dims) in _ENCODER_TOP.items()},
        "dense": [(f"{dense}.weight", "pooled, embed")],
        "dense_bias": [(f"{dense}.bias", "pooled")],
        "score": [(f"{score}.weight", "labels, pooled")],
        "score_bias": [(f"{score}.bias", "labels")],
    }
    return _tensors(config, top, _ENCODER_LAYER, layers=f"{base}.encoder.layer")


def _tensors(
    config: ModelConfig, top: Parts, inner: Parts, *, layers: str
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter that `config` declares.

    Several tensors of a parameter lie in it one after the other along the axis of their `part`.
    top, inner: the parts of the model and of a layer, of which there are many under `layers`.
    """
    # How many of a key-value head's queries, keys and values; of gates and ups.
    widths = {"qkv": (config.heads // config.kv_heads, 1, 1), "gate_up": (1, 1)}
    tensors: dict[Path, tuple[HfTensor, ...]] = {}
    for path, axes in param_axes(config).items():
        match path:
            case ("layers", layer, *rest):
                parts, prefix = inner[_dotted(rest)], f"{layers}.{layer}."
            case _:
                parts, prefix = top[_dotted(path)], ""
        axis = next((word for word in axes if word in widths), None)
        tensors[path] = tuple(
            HfTensor(
                prefix + name,
                tuple(tuple(dim.split()) for dim in dims.split(",")),
                None if axis is None else (axis, widths[axis][i]),
            )
            for i, (name, dims) in enumerate(parts)
        )
    return tensors


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))
