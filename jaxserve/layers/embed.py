"""Token lookup."""

import jax
import jax.numpy as jnp
from jax import Array


def embed(table: Array, token_ids: Array) -> Array:
    """Return the rows `token_ids` [...] of `table` [vocab, embed], as [..., embed].

    An id outside of the table gives a row of NaN, so that it cannot pass for a token.
    """
    with jax.named_scope("embed"):
        return jnp.take(table, token_ids, axis=0, mode="fill", fill_value=jnp.nan)
