"""A model family of one's own: Arcee's AFM, a Llama whose MLP squares its ReLU and has no gate.

python examples/custom_model.py arcee-ai/AFM-4.5B-Base "Once upon a time"
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve import LLM
from jaxserve.layers.linear import Rows, einsum
from jaxserve.models import Decoder, DecoderConfig, DecoderFamily, Tap, register_family
from jaxserve.models.declare import matrix


class SquaredReluMLP(nnx.Module):
    """down(relu(up(x)) ** 2) (So et al., 2021, arXiv:2109.08668)."""

    def __init__(self, config: DecoderConfig) -> None:
        self.up = matrix("embed", embed=config.embed, ffw=config.ffw)
        self.down = matrix("ffw", ffw=config.ffw, embed=config.embed)

    def __call__(self, x: jax.Array, rows: Rows, tap: Tap) -> jax.Array:
        """Transform each token of `x` by itself."""
        active = jnp.square(jax.nn.relu(einsum("td,df->tf", x, self.up[...], rows)))
        return einsum("tf,fd->td", tap("active", active), self.down[...], rows)


class Arcee(Decoder):
    """The decoder, with these."""

    feed_forward = SquaredReluMLP


UP = {"mlp.up": [("mlp.up_proj.weight", "ffw, embed")]}  # What else there is lies as in Llama.
FAMILY = DecoderFamily(Arcee, hidden_act="relu2", tensors=UP)

if __name__ == "__main__":
    register_family("arcee", FAMILY)
    print(LLM(sys.argv[1]).generate(sys.argv[2])[0].outputs[0].text)
