"""A model family of one's own: Arcee's AFM, a Llama whose MLP squares its ReLU and has no gate.

python examples/custom_model.py arcee-ai/AFM-4.5B-Base "Once upon a time"
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve import LLM
from jaxserve.layers.linear import einsum
from jaxserve.models import DecoderConfig, DecoderFamily, Dense, ForwardContext, register_family
from jaxserve.models.declare import matrix


class SquaredReluMLP(nnx.Module):
    """down(relu(up(x)) ** 2) (So et al., 2021, arXiv:2109.08668)."""

    def __init__(self, config: DecoderConfig, layer: Dense) -> None:
        self.up = matrix("embed", embed=config.embed, ffw=layer.ffw)
        self.down = matrix("ffw", ffw=layer.ffw, embed=config.embed)

    def __call__(self, x: jax.Array, context: ForwardContext[Any]) -> jax.Array:
        """Return what to add to the stream."""
        active = jnp.square(jax.nn.relu(einsum("td,df->tf", x, self.up[...], context.rows)))
        return einsum("tf,fd->td", context.tap("active", active), self.down[...], context.rows)


UP = {"mlp.up": [("mlp.up_proj.weight", "ffw, embed")]}  # All other parameters lie as in Llama.
FAMILY = DecoderFamily(feed_forward=SquaredReluMLP, hidden_act="relu2", tensors=UP)

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} CHECKPOINT PROMPT")
    register_family("arcee", FAMILY)
    print(LLM(sys.argv[1]).generate(sys.argv[2])[0].outputs[0].text)
