"""A family with a block and a final norm of its own: PaLM's parallel layers.

python examples/custom_block.py path/to/checkpoint "Once upon a time"
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve import LLM
from jaxserve.models import (
    DecoderConfig,
    DecoderFamily,
    ForwardContext,
    LayerConfig,
    register_family,
)


class ParallelBlock(nnx.Module):
    """x + attention(norm(x)) + mlp(norm(x)) (Chowdhery et al., 2022, arXiv:2204.02311)."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        self.norm = config.norm(config.norm_eps, embed=config.embed)
        self.attention = layer.mixer.module(config, layer.mixer)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)

    def __call__[Cache](
        self, x: jax.Array, cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[jax.Array, Cache]:
        """Return the stream after this layer, and the layer's cache."""
        inner = self.norm(x)
        mixed, cache = self.attention(inner, cache, context.under("attention"))
        return context.tap("out", x + mixed + self.mlp(inner, context.under("mlp"))), cache


class CenteredNorm(nnx.Module):
    """Mean 0 and variance 1, without parameters (as in OLMo, arXiv:2402.00838)."""

    def __init__(self, eps: float, **_width: int) -> None:
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`, normalised along its last dimension."""
        return jax.nn.standardize(x.astype(jnp.float32), epsilon=self.eps).astype(x.dtype)


NORM = {"norm.weight": [("input_layernorm.weight", "embed")]}  # The rest lies as in Llama.
FAMILY = DecoderFamily(block=ParallelBlock, final_norm=CenteredNorm, tensors=NORM)

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} CHECKPOINT PROMPT")
    register_family("parallel", FAMILY)
    print(LLM(sys.argv[1]).generate(sys.argv[2])[0].outputs[0].text)
