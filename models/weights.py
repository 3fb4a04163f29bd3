"""Where the parameters of the Llama-shaped families lie in a Hugging Face checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxserve.models.config import DecoderConfig
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
_TOP = {
    "embedding": [("model.embed_tokens.weight", "vocab, embed")],
    "final_norm": [("model.norm.weight", "embed")],
    "lm_head": [("lm_head.weight", "vocab, embed")],
    "score": [("score.weight", "labels, embed")],
}
_LAYER = {
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


def llama_tensors(
    config: DecoderConfig, *, more: Mapping[str, list[tuple[str, str]]] | None = None
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter that `config` declares.

    more: of parameters of a layer that are a family's own, by their path in it: the names of their
    tensors in the checkpoint's layer, and the axes of each dimension.

    Several tensors of a parameter lie in it one after the other along the axis of their `part`.
    """
    # How many of a key-value head's queries, keys and values; of gates and ups.
    widths = {"qkv": (config.heads // config.kv_heads, 1, 1), "gate_up": (1, 1)}
    layers = {**_LAYER, **(more or {})}
    tensors: dict[Path, tuple[HfTensor, ...]] = {}
    for path, axes in param_axes(config).items():
        match path:
            case ("layers", layer, *inner):
                parts = layers[".".join(str(part) for part in inner)]
                prefix = f"model.layers.{layer}."
            case (top,):
                parts, prefix = _TOP[str(top)], ""
            case _:
                raise AssertionError(f"no checkpoint tensor is known for {path}")
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
