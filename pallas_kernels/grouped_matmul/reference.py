"""Definition of the grouped matmul, with a copy of a matrix for every row."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def grouped_matmul(
    x: Float[Array, "rows inputs"],
    matrices: Float[Array, "groups inputs outputs"],
    sizes: Int[Array, " groups"],
    *,
    dtype: DTypeLike,
) -> Float[Array, "rows outputs"]:
    """See api.grouped_matmul."""
    rows = jnp.arange(x.shape[0])
    groups = jnp.searchsorted(jnp.cumsum(sizes), rows, side="right")
    own = jnp.take(matrices, groups, axis=0, mode="clip")
    product = jnp.einsum("mk,mkn->mn", x, own, preferred_element_type=dtype)
    return jnp.where((rows < jnp.sum(sizes))[:, None], product, 0)
