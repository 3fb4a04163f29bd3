"""A model family of one's own: Arcee's AFM, a Llama whose MLP squares its ReLU and has no gate.

python examples/custom_model.py arcee-ai/AFM-4.5B-Base "Once upon a time"
"""

import sys
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve import LLM
from jaxserve.layers.linear import einsum
from jaxserve.models import Decoder, DecoderConfig, HfTensor, Path, Tap, register_family
from jaxserve.models.declare import matrix
from jaxserve.models.hf_config import HfConfig, decoder_config
from jaxserve.models.weights import llama_tensors


class SquaredReluMLP(nnx.Module):
    """down(relu(up(x)) ** 2) (So et al., 2021, arXiv:2109.08668)."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the projections."""
        self.up = matrix("embed", embed=config.embed, ffw=config.ffw)
        self.down = matrix("ffw", ffw=config.ffw, embed=config.embed)

    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """Transform each token of `x` by itself."""
        active = jnp.square(jax.nn.relu(einsum("td,df->tf", x, self.up[...])))
        return einsum("tf,fd->td", tap("active", active), self.down[...])


class Arcee(Decoder):
    """The decoder, with other MLPs."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the parameters."""
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = SquaredReluMLP(config)  # type: ignore[assignment]


class Family:
    """How checkpoints say all this."""

    def config_from_hf(self, hf: Mapping[str, object]) -> DecoderConfig:
        """Read a `config.json`."""
        HfConfig(hf).only("hidden_act", "relu2")
        rest = HfConfig({key: value for key, value in hf.items() if key != "hidden_act"})
        return replace(decoder_config(rest), architecture=Arcee)

    def hf_tensors(self, config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
        """Return where each parameter lies."""
        return llama_tensors(config, more={"mlp.up": [("mlp.up_proj.weight", "ffw, embed")]})


def main(model: str, prompt: str) -> None:
    """Continue a text."""
    register_family("arcee", Family())
    print(LLM(model).generate(prompt)[0].outputs[0].text)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
