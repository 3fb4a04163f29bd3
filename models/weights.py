"""Where the parameters of the Llama-shaped families lie in a Hugging Face checkpoint."""

from dataclasses import dataclass

from jaxserve.models.config import DecoderConfig
from jaxserve.models.params import Path, param_axes


@dataclass(frozen=True, slots=True)
class HfTensor:
    """One tensor of a checkpoint: its name, and which of our axes each of its dimensions holds.

    A dimension may hold several of our axes, flattened: q_proj.weight is
    [(heads, head_dim), (embed)].
    """

    name: str
    dims: tuple[tuple[str, ...], ...]


_TOP = {
    "embedding": ("model.embed_tokens.weight", "vocab, embed"),
    "final_norm": ("model.norm.weight", "embed"),
    "lm_head": ("lm_head.weight", "vocab, embed"),
}
_LAYER = {
    "attention_norm": ("input_layernorm.weight", "embed"),
    "attention.q": ("self_attn.q_proj.weight", "heads head_dim, embed"),
    "attention.k": ("self_attn.k_proj.weight", "kv_heads head_dim, embed"),
    "attention.v": ("self_attn.v_proj.weight", "kv_heads head_dim, embed"),
    "attention.o": ("self_attn.o_proj.weight", "embed, heads head_dim"),
    "attention.q_bias": ("self_attn.q_proj.bias", "heads head_dim"),
    "attention.k_bias": ("self_attn.k_proj.bias", "kv_heads head_dim"),
    "attention.v_bias": ("self_attn.v_proj.bias", "kv_heads head_dim"),
    "attention.o_bias": ("self_attn.o_proj.bias", "embed"),
    "attention.q_norm": ("self_attn.q_norm.weight", "head_dim"),
    "attention.k_norm": ("self_attn.k_norm.weight", "head_dim"),
    "mlp_norm": ("post_attention_layernorm.weight", "embed"),
    "mlp.gate": ("mlp.gate_proj.weight", "ffw, embed"),
    "mlp.up": ("mlp.up_proj.weight", "ffw, embed"),
    "mlp.down": ("mlp.down_proj.weight", "embed, ffw"),
    "mlp.gate_bias": ("mlp.gate_proj.bias", "ffw"),
    "mlp.up_bias": ("mlp.up_proj.bias", "ffw"),
    "mlp.down_bias": ("mlp.down_proj.bias", "embed"),
}


def llama_tensors(config: DecoderConfig) -> dict[Path, HfTensor]:
    """Return the checkpoint tensor of every parameter that `config` declares."""
    tensors: dict[Path, HfTensor] = {}
    for path in param_axes(config):
        match path:
            case ("layers", layer, *inner):
                name, dims = _LAYER[".".join(str(part) for part in inner)]
                name = f"model.layers.{layer}.{name}"
            case (top,):
                name, dims = _TOP[str(top)]
            case _:
                raise AssertionError(f"no checkpoint tensor is known for {path}")
        tensors[path] = HfTensor(name, tuple(tuple(dim.split()) for dim in dims.split(",")))
    return tensors
