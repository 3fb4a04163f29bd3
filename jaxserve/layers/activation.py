"""Activations of feed-forwards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Called with the gate and the gated projection; hashable.
type Gated = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
# Called with the only projection; hashable.
type Ungated = Callable[[Float[Array, "..."]], Float[Array, "..."]]

_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _relu_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square of the positive part (So et al., 2021, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


# By the names of transformers. GELU: Hendrycks and Gimpel, 2016, arXiv:1606.08415.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu2": _relu_squared,
    "tanh": jnp.tanh,
}


@dataclass(frozen=True)
class Glu:
    """Gated linear unit (Shazeer, 2020, arXiv:2002.05202): activation(gate) * up.

    activation: one of ACTIVATIONS.
    """

    activation: str

    def __call__(self, gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the activation."""
        return ACTIVATIONS[self.activation](gate) * up


SWIGLU = Glu("silu")


@dataclass(frozen=True, kw_only=True)
class ClampedSwiglu:
    """SwiGLU of gpt-oss (OpenAI, 2025, arXiv:2508.10925): gate * sigmoid(alpha * gate) * (up + 1).

    limit: largest gate, and largest magnitude of `up`; greater ones are clamped.
    """

    alpha: float
    limit: float

    def __call__(self, gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the activation."""
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)
