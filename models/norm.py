"""Norms as modules."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.layers.norm import layer_norm, rms_norm
from jaxserve.models.declare import ones, zeros


class RMSNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, eps: float, **width: int) -> None:
        """Declare the scale. width: name and size of each normalized axis."""
        self.eps = eps
        self.weight = ones(**width)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `x`, normalised along its last dimensions."""
        return rms_norm(x, self.weight[...], eps=self.eps)


class OffsetRMSNorm(nnx.Module):
    """Root mean square normalization with a scale of 1 + weight, as in Gemma and Qwen3-Next."""

    def __init__(self, eps: float, **width: int) -> None:
        """Declare the scale's offset from 1. width: name and size of each normalized axis."""
        self.eps = eps
        self.weight = zeros(**width)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `x`, normalized along its last dimensions."""
        return rms_norm(x, 1 + self.weight[...].astype(jnp.float32), eps=self.eps)


class UnscaledRMSNorm(nnx.Module):
    """Root mean square normalization without parameters."""

    def __init__(self, eps: float) -> None:
        """Set the epsilon."""
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Return `x`, normalized along its last dimension."""
        return rms_norm(x, jnp.ones(x.shape[-1]), eps=self.eps)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016, arXiv:1607.06450)."""

    def __init__(self, eps: float, **width: int) -> None:
        """Declare scale and shift. width: name and size of the normalized axis."""
        self.eps = eps
        self.weight = ones(**width)
        self.bias = zeros(**width)

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Return `x`, normalised along its last dimension."""
        return layer_norm(x, self.weight[...], self.bias[...], eps=self.eps)


class UnshiftedLayerNorm(nnx.Module):
    """Layer normalisation with a scale and no shift."""

    def __init__(self, eps: float, **width: int) -> None:
        """Declare the scale. width: name and size of the normalized axis."""
        self.eps = eps
        self.weight = ones(**width)

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Return `x`, normalised along its last dimension."""
        return layer_norm(x, self.weight[...], None, eps=self.eps)
