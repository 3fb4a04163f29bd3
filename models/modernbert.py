"""ModernBERT: an encoder with rotation and windows (Warner et al., 2024, arXiv:2412.13663)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxserve.layers.activation import ACTIVATIONS
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.models.config import DecoderConfig, Dense, GroupedQuery
from jaxserve.models.declare import matrix, zeros
from jaxserve.models.decoder import Decoder
from jaxserve.models.hf_config import (
    Modules,
    both_ways,
    decoder_config,
    read_layer_types,
    windows_of,
)
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, SLIDING, read_ropes
from jaxserve.models.norm import LayerNorm, UnshiftedLayerNorm
from jaxserve.models.weights import Cut, HfTensor, Parts, Stored, llama_tensors
from jaxserve.quantization.layout import Path

_NAMES = {
    "hidden_act": "hidden_activation",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "global_rope_theta",
}
_DEFAULTS = {"norm_eps": 1e-5, "global_rope_theta": 160000.0}
_TOP: Parts = {
    "embedding": [("model.embeddings.tok_embeddings.weight", "vocab, embed")],
    "embedding_norm.weight": [("model.embeddings.norm.weight", "embed")],
    "embedding_norm.bias": [("model.embeddings.norm.bias", "embed")],
    "final_norm.weight": [("model.final_norm.weight", "embed")],
    "final_norm.bias": [("model.final_norm.bias", "embed")],
    "dense": [("head.dense.weight", "pooled, embed")],
    "head_norm.weight": [("head.norm.weight", "embed")],
    "head_norm.bias": [("head.norm.bias", "embed")],
    "score": [("classifier.weight", "labels, embed")],
    "score_bias": [("classifier.bias", "labels")],
}
_LAYER: Parts = {
    "attention_norm.weight": [("attn_norm.weight", "embed")],
    "attention_norm.bias": [("attn_norm.bias", "embed")],
    "attention.o": [("attn.Wo.weight", "embed, heads head_dim")],
    "attention.o_bias": [("attn.Wo.bias", "embed")],
    "mlp_norm.weight": [("mlp_norm.weight", "embed")],
    "mlp_norm.bias": [("mlp_norm.bias", "embed")],
    "mlp.down": [("mlp.Wo.weight", "embed, ffw")],
    "mlp.down_bias": [("mlp.Wo.bias", "embed")],
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS, names=_NAMES)
    reader.only("classifier_bias", False, None)
    reader.only("classifier_activation", "gelu", None)
    norm = LayerNorm if reader.flag("norm_bias", default=False) else UnshiftedLayerNorm
    bias = reader.flag("attention_bias", default=False)
    kinds = _layer_types(reader)
    ropes = read_ropes(
        reader,
        kinds,
        max_position=reader.integer("max_position_embeddings"),
        sliding_theta=reader.number("local_rope_theta", default=10000.0),
    )
    config = decoder_config(
        reader,
        modules=Modules(norm=norm, final_norm=norm, hidden_act="gelu", architecture=ModernBert),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=reader.flag("mlp_bias", default=False),
        # The window of the file is that of both sides.
        sliding_windows=windows_of(kinds, reader.integer("local_attention", default=128) // 2 + 1),
        ropes=ropes,
    )
    first, *others = config.layers
    layers = (replace(first, takes_normalized=True), *others)
    skipped = ("head.", "decoder.", "classifier.")
    config = replace(config, layers=layers, embedding_norm=True, skipped_tensors=skipped)
    return both_ways(config)


def _layer_types(reader: HfConfig) -> tuple[str, ...]:
    """Return the type of each layer, which starts with a layer of full attention by default."""
    if reader.words("layer_types") is not None:
        return read_layer_types(reader, full_every=1)
    period = reader.integer("global_attn_every_n_layers", default=3)
    num_layers = reader.integer("num_hidden_layers")
    return tuple(SLIDING if i % period else FULL for i in range(num_layers))


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    mixer, feed_forward = config.layers[0].mixer, config.layers[0].feed_forward
    assert isinstance(mixer, GroupedQuery)
    assert isinstance(feed_forward, Dense)
    width, ffw = mixer.heads * mixer.head_dim, feed_forward.ffw
    starts = (0, width, 2 * width)
    qkv, gate_up = "kv_heads qkv head_dim", "gate_up ffw"
    fused: Parts = {
        "attention.qkv": [
            Stored("attn.Wqkv.weight", f"{qkv}, embed", Cut(start, 3 * width)) for start in starts
        ],
        "attention.qkv_bias": [
            Stored("attn.Wqkv.bias", qkv, Cut(start, 3 * width)) for start in starts
        ],
        "mlp.gate_up": [
            Stored("mlp.Wi.weight", f"{gate_up}, embed", Cut(start, 2 * ffw)) for start in (0, ffw)
        ],
        "mlp.gate_up_bias": [
            Stored("mlp.Wi.bias", gate_up, Cut(start, 2 * ffw)) for start in (0, ffw)
        ],
    }
    return llama_tensors(config, more={**_LAYER, **fused}, top=_TOP)


class ModernBert(Decoder):
    """Encoder whose classification head is a dense layer, a norm and a linear layer."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the parameters."""
        super().__init__(config)
        d, labels = config.embed, config.num_labels
        self.dense = matrix("embed", embed=d, pooled=d) if labels else None
        self.head_norm: Any = config.norm(config.norm_eps, embed=d) if labels else None
        self.score_bias = zeros(labels=labels) if labels else None

    def pooled(
        self, vectors: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows width"]:
        """Return the float32 label scores, or the embeddings, of pooled prompts."""
        if self.dense is None or self.score_bias is None:
            return super().pooled(vectors, rows)
        with jax.named_scope("head"):
            dense = einsum("td,dp->tp", vectors, self.dense[...], rows)
            vectors = self.head_norm(ACTIVATIONS["gelu"](dense))
        return super().pooled(vectors, rows) + self.score_bias[...].astype(jnp.float32)
