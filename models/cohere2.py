"""Command R7B and Command A: parallel layers, global ones without rotation (arXiv:2504.00698)."""

from collections.abc import Mapping
from dataclasses import replace

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.models.config import DecoderConfig, LayerConfig
from jaxserve.models.forward import ForwardContext
from jaxserve.models.hf_config import (
    Modules,
    decoder_config,
    read_layer_types,
    windows_of,
)
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, read_rope
from jaxserve.models.norm import UnshiftedLayerNorm
from jaxserve.models.weights import HfTensor, interleaved_qkv, llama_tensors
from jaxserve.quantization.layout import Path


class ParallelBlock(nnx.Module):
    """x + attention(norm(x)) + mlp(norm(x)) (Chowdhery et al., 2022, arXiv:2204.02311)."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        self.attention_norm = config.norm(config.norm_eps, embed=config.embed)
        self.attention = layer.mixer.module(config, layer.mixer)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the residual stream after this layer, and the layer's cache."""
        inner = self.attention_norm(x)
        with jax.named_scope("attention"):
            mixed, cache = self.attention(inner, cache, context.under("attention"))
            mixed = context.tap("attention.out", mixed)
        with jax.named_scope("mlp"):
            out = context.tap("mlp.out", self.mlp(inner, context.under("mlp")))
        return context.tap("out", x + mixed + out), cache


_MODULES = Modules(block=ParallelBlock, norm=UnshiftedLayerNorm, final_norm=UnshiftedLayerNorm)


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(
        hf,
        defaults={"layer_norm_eps": 1e-5, "tie_word_embeddings": True},
        names={"rms_norm_eps": "layer_norm_eps"},
    )
    reader.only("head_dim", None, _head_dim(reader))
    kinds = read_layer_types(reader, full_every=reader.integer("sliding_window_pattern", default=4))
    window = reader.optional_integer("sliding_window", default=4096)
    rope = read_rope(reader, max_position=reader.integer("max_position_embeddings"))
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        modules=_MODULES,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        sliding_windows=windows_of(kinds, window),
        ropes=[None if kind == FULL or window is None else rope for kind in kinds],
    )
    return replace(config, logit_multiplier=reader.number("logit_scale", default=0.0625))


def _head_dim(reader: HfConfig) -> int:
    return reader.integer("hidden_size") // reader.integer("num_attention_heads")


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=interleaved_qkv(config))
