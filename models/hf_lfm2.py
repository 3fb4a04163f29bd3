"""Keys and tensors that LFM2 and its mixtures of experts share."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, read_layer_types
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL
from jaxserve.models.short_conv import ShortConv
from jaxserve.models.weights import LAYER, HfTensor, Parts, llama_tensors
from jaxserve.quantization.layout import Path

_CONV = "conv"
DEFAULTS: Mapping[str, object] = {
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
NAMES = {"rms_norm_eps": "norm_eps"}


def with_older_names(hf: Mapping[str, object]) -> dict[str, object]:
    """Return a `config.json` with keys of LFM2's first releases renamed, as transformers does."""
    found = dict(hf)
    for older, newer in (
        ("tie_embedding", "tie_word_embeddings"),
        ("block_ff_dim", "intermediate_size"),
    ):
        if older in found:
            found[newer] = found.pop(older)
    return found


def lfm2_config(reader: HfConfig) -> DecoderConfig:
    """Read the keys that both families share, for layers that are all dense."""
    config = decoder_config(reader, qk_norm=True, kv_heads=8)
    kinds = _kinds(reader, config.num_layers)
    conv = ShortConv(
        channels=config.embed,
        taps=reader.integer("conv_L_cache", default=3, low=2),
        bias=reader.flag("conv_bias", default=False),
    )
    layers = tuple(
        layer if kind == FULL else replace(layer, mixer=conv)
        for kind, layer in zip(kinds, config.layers, strict=True)
    )
    return replace(config, layers=layers)


def _kinds(reader: HfConfig, num_layers: int) -> tuple[str, ...]:
    """Return the type of each layer; without layer_types, full_attn_idxs lists attention."""
    if reader.has("layer_types"):
        return read_layer_types(reader, full_every=1, known=(_CONV, FULL))
    attending = reader.integers("full_attn_idxs")
    attending = tuple(range(num_layers)) if attending is None else attending
    return tuple(FULL if i in attending else _CONV for i in range(num_layers))


def lfm2_tensors(
    config: DecoderConfig, *, more: Parts | None = None
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter; more: as in `llama_tensors`."""
    gates_value = "gates_value conv_channels"
    tensors: Parts = {
        "attention_norm.weight": [("operator_norm.weight", "embed")],
        "mlp_norm.weight": [("ffn_norm.weight", "embed")],
        "mlp.gate_up": [
            ("feed_forward.w1.weight", "gate_up ffw, embed"),
            ("feed_forward.w3.weight", "gate_up ffw, embed"),
        ],
        "mlp.down": [("feed_forward.w2.weight", "embed, ffw")],
        "attention.qkv": LAYER["attention.qkv"],
        "attention.o": [("self_attn.out_proj.weight", "embed, heads head_dim")],
        "attention.q_norm.weight": [("self_attn.q_layernorm.weight", "head_dim")],
        "attention.k_norm.weight": [("self_attn.k_layernorm.weight", "head_dim")],
        "attention.gates_value": [("conv.in_proj.weight", f"{gates_value}, embed")],
        "attention.gates_value_bias": [("conv.in_proj.bias", gates_value)],
        "attention.conv": [("conv.conv.weight", "conv_channels,,taps")],
        "attention.conv_bias": [("conv.conv.bias", "conv_channels")],
        "attention.out": [("conv.out_proj.weight", "embed, conv_channels")],
        "attention.out_bias": [("conv.out_proj.bias", "embed")],
    }
    top: Parts = {"final_norm.weight": [("model.embedding_norm.weight", "embed")]}
    return llama_tensors(config, more={**tensors, **(more or {})}, top=top)
