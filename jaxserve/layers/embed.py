"""Embedding lookup."""

import jax
from jaxtyping import Array, Float, Int

from jaxserve.quantization.matrix import Matrix, Rows, as_matrix


def embed(
    table: Float[Array, "vocab embed"] | Matrix,
    token_ids: Int[Array, " tokens"],
    rows: Rows,
) -> Float[Array, "tokens embed"]:
    """Return the rows `token_ids` of `table`.

    An id out of range gives a row of NaN, so that the error is not silent.
    """
    with jax.named_scope("embed"):
        return as_matrix(table).take(token_ids, rows)
