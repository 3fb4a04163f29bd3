"""Token lookup."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserve.quantization import int8
from jaxserve.quantization.int8 import Int8Matrix
from pallas_kernels import packed_linear
from pallas_kernels.packed_linear import PackedMatrix


def embed(
    table: Float[Array, "vocab embed"] | Int8Matrix | PackedMatrix,
    token_ids: Int[Array, " tokens"],
) -> Float[Array, "tokens embed"]:
    """Return the rows `token_ids` of `table`.

    An id outside of the table gives a row of NaN, so that it cannot pass for a token.
    """
    with jax.named_scope("embed"):
        if isinstance(table, PackedMatrix):
            return packed_linear.take(table, token_ids)
        if isinstance(table, Int8Matrix):
            return int8.embed(table, token_ids)
        return jnp.take(table, token_ids, axis=0, mode="fill", fill_value=jnp.nan)
