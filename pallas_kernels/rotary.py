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

    Pair i consists of dimensions i and i + pairs, as in Hugging Face checkpoints. Dimensions from
    2 * pairs on stay as they are. Computed in float32, returned in the dtype of `x`.
    """
    with jax.named_scope("rope"):
        cos, sin = (part[:, None, :] for part in table)
        pairs = cos.shape[-1]
        first, second, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin, rest)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
