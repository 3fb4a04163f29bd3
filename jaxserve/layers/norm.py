"""Normalization functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "*shape"], weight: Float[Array, "*width"], *, eps: float
) -> Float[Array, "*shape"]:
    """Scale the last dimensions of `x`, those of `weight`, to a root mean square of one.

    The result is multiplied by `weight`. Computed in float32, returned in the dtype of `x`. Zhang
    and Sennrich, "Root Mean Square Layer Normalization", 2019 (arXiv:1910.07467).
    """
    axes = tuple(range(-weight.ndim, 0))
    with jax.named_scope("rms_norm"):
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=axes, keepdims=True) + eps)
        return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*rows width"],
    weight: Float[Array, " width"],
    bias: Float[Array, " width"] | None,
    *,
    eps: float,
) -> Float[Array, "*rows width"]:
    """Normalize the last dimension of `x` to mean 0 and variance 1, then scale and shift it.

    bias: None for no shift. Computed in float32, returned in the dtype of `x`. Ba et al., "Layer
    Normalization", 2016 (arXiv:1607.06450).
    """
    with jax.named_scope("layer_norm"):
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
        out = centred * scale * weight.astype(jnp.float32)
        if bias is not None:
            out += bias.astype(jnp.float32)
        return out.astype(x.dtype)
