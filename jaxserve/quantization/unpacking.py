"""Numbers of four or eight bits packed into wider integers."""

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8


def words(packed: Int[Array, "..."], bits: int) -> UInt8[Array, "..."]:
    """Unpack int32 along the last axis, the lowest bits first."""
    shifts = jnp.arange(0, 32, bits, dtype=jnp.uint32)
    found = (packed.astype(jnp.uint32)[..., None] >> shifts) & jnp.uint32((1 << bits) - 1)
    numbers: Array = found.astype(jnp.uint8)
    return numbers.reshape(*packed.shape[:-1], -1)


def nibbles(packed: UInt8[Array, "..."], *, high_first: bool = False) -> UInt8[Array, "..."]:
    """Unpack two numbers of four bits from each byte, along the last axis."""
    pair = (packed & 15, packed >> 4)
    return jnp.stack(pair[::-1] if high_first else pair, axis=-1).reshape(*packed.shape[:-1], -1)


def group_order(group_of: Int[Array, " inputs"]) -> Int[Array, " inputs"]:
    """Return the inputs in the order of their groups."""
    return jnp.argsort(group_of, stable=True)
