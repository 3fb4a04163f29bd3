"""Products of groups of rows with a matrix each, as a mixture of experts needs them.

TPUs have a grouped kernel behind `jax.lax.ragged_dot`. On other platforms XLA expands that into a
product of every row with every matrix, so those run a loop over tiles (tiles.py).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import tiles


def grouped_matmul(
    x: Float[Array, "rows inputs"],
    matrices: Float[Array, "groups inputs outputs"],
    sizes: Int[Array, " groups"],
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "rows outputs"]:
    """Multiply each group of rows by its matrix.

    sizes: number of rows of each group; the rows are in the order of the groups. The results of
    rows after the last group are zeros. dtype: dtype of the result, by default that of `x`.
    """
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    sizes = sizes.astype(jnp.int32)
    with jax.named_scope("grouped_matmul"):
        product: Array = lax.platform_dependent(
            x,
            matrices,
            sizes,
            tpu=partial(lax.ragged_dot, preferred_element_type=dtype),
            default=lambda *operands: tiles.grouped_matmul(*operands, dtype),
        )
    return product
