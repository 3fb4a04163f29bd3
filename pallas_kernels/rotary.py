"""Rotary position embeddings in plain jnp (Su et al., "RoFormer", 2021, arXiv:2104.09864)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# float32 cosines and sines of the angle of every pair of dimensions.
type RopeTable = tuple[Float[Array, "tokens pairs"], Float[Array, "tokens pairs"]]


def rotate(
    x: Float[Array, "tokens heads head_dim"], table: RopeTable
) -> Float[Array, "tokens heads head_dim"]:
    """Rotate the pairs of dimensions of each head of `x` by the angles of `table`.

    Pair i consists of dimensions i and i + head_dim / 2, as in Hugging Face checkpoints. Computed
    in float32, returned in the dtype of `x`.
    """
    with jax.named_scope("rope"):
        cos, sin = (part[:, None, :] for part in table)
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
