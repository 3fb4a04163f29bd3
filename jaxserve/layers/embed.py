"""Token lookup."""

import jax
from jaxtyping import Array, Float, Int

from jaxserve.quantization.matrix import Matrix, Rows, as_matrix


def embed(
    table: Float[Array, "vocab embed"] | Matrix,
    token_ids: Int[Array, " tokens"],
    rows: Rows,
) -> Float[Array, "tokens embed"]:
    """Return the rows `token_ids` of `table`.

    An id outside of the table gives a row of NaN, so that it cannot pass for a token.
    """
    with jax.named_scope("embed"):
        return as_matrix(table).take(token_ids, rows)
