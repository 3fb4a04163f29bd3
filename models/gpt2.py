"""GPT-2: learned positions, layer norms, biases (Radford et al., 2019)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import Modules, decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.mlp import UngatedMLP
from jaxserve.models.norm import LayerNorm
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

_MODULES = Modules(
    feed_forward=UngatedMLP, norm=LayerNorm, final_norm=LayerNorm, hidden_act="gelu_new"
)
_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}
_TOP: Parts = {
    "embedding": [("transformer.wte.weight", "vocab, embed")],
    "positions": [("transformer.wpe.weight", "positions, embed")],
    "final_norm.weight": [("transformer.ln_f.weight", "embed")],
    "final_norm.bias": [("transformer.ln_f.bias", "embed")],
}
# Matrices are stored as [in, out].
_LAYER: Parts = {
    "attention_norm.weight": [("ln_1.weight", "embed")],
    "attention_norm.bias": [("ln_1.bias", "embed")],
    "attention.o": [("attn.c_proj.weight", "heads head_dim, embed")],
    "attention.o_bias": [("attn.c_proj.bias", "embed")],
    "mlp_norm.weight": [("ln_2.weight", "embed")],
    "mlp_norm.bias": [("ln_2.bias", "embed")],
    "mlp.up": [("mlp.c_fc.weight", "embed, ffw")],
    "mlp.up_bias": [("mlp.c_fc.bias", "ffw")],
    "mlp.down": [("mlp.c_proj.weight", "ffw, embed")],
    "mlp.down_bias": [("mlp.c_proj.bias", "embed")],
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    embed = HfConfig(hf).integer("n_embd")
    # Null and absent mean the same.
    keys = {**hf, "n_inner": hf.get("n_inner") or 4 * embed}
    defaults = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    reader = HfConfig(keys, defaults=defaults, names=_NAMES)
    reader.only("scale_attn_weights", True)
    reader.only("scale_attn_by_inverse_layer_idx", False)
    reader.only("add_cross_attention", False)
    config = decoder_config(
        reader,
        modules=_MODULES,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        ropes=(None,) * reader.integer("num_hidden_layers"),
    )
    return replace(config, num_positions=config.max_position)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    d = config.embed
    weight = ("attn.c_attn.weight", "embed, kv_heads qkv head_dim")
    bias = ("attn.c_attn.bias", "kv_heads qkv head_dim")
    starts = (0, d, 2 * d)
    fused: Parts = {
        "attention.qkv": [Stored(*weight, Cut(start, 3 * d, dim=1)) for start in starts],
        "attention.qkv_bias": [Stored(*bias, Cut(start, 3 * d)) for start in starts],
    }
    return llama_tensors(config, more={**_LAYER, **fused}, top=_TOP, layers="transformer.h")
