"""Every product of activations and weights goes through `einsum`."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def einsum(
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Contract activations with a weight, in the einsum letters of the model code.

    The result has the dtype of `x`, or `dtype` where more is wanted than the activations carry
    (float32 logits); products of narrower types are accumulated in float32 by XLA in any case.
    Model code never asks what a weight is made of: that is decided here.
    """
    return jnp.einsum(spec, x, weight, preferred_element_type=x.dtype if dtype is None else dtype)
