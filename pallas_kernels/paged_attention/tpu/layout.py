"""How the TPU kernels lay out a cache: a head's keys and values side by side on the lanes.

A page is [kv_heads, page_size, lanes]: all heads of a device are one contiguous copy, and what is
one head's is a plain tile of the vector memory. Keys lie at lanes [0, head_dim), values at
[head_dim, 2 * head_dim), zeros behind. A product reads whole registers of 128 lanes, so keys and
values are windows of lanes with something of the other in them: queries are zero there, and results
are cut.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from pallas_kernels.paged_attention.batch import AttentionConfig

LANES = 128
# Rows of 32 bits in a tile of the vector memory; narrower types have 2 or 4 to each.
_SUBLANES = 8


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Windows and tiles of the cache of a config."""

    kv_heads: int
    group: int
    head_dim: int
    page_size: int
    cache_dtype: jnp.dtype
    dtype: jnp.dtype

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def lanes(self) -> int:
        """The size of the last axis."""
        return round_up(2 * self.head_dim, LANES)

    @property
    def key_lanes(self) -> int:
        """The size of the window of keys, which begins at lane 0; also that of a query."""
        return round_up(self.head_dim, LANES)

    @property
    def value_start(self) -> int:
        """The first lane of the window of values, which ends with the last lane."""
        return self.head_dim // LANES * LANES

    @property
    def value_lanes(self) -> int:
        """The size of the window of values; also that of an uncut result."""
        return self.lanes - self.value_start

    @property
    def tile(self) -> int:
        """Tokens in a tile: the unit in which rows of a page are written."""
        return tile_rows(self.cache_dtype)

    @property
    def group_rows(self) -> int:
        """Query heads of a KV head, with as many more as fill the registers."""
        return round_up(self.group, _SUBLANES)

    def cut(self, out: Shaped[Array, "*rows value_lanes"]) -> Shaped[Array, "*rows head_dim"]:
        """Return what a result has of the values."""
        start = self.head_dim - self.value_start
        return out[..., start : start + self.head_dim]

    def pad_queries(self, q: Shaped[Array, "*rows head_dim"]) -> Shaped[Array, "*rows key_lanes"]:
        """Return queries as wide as the window of keys, zero where it holds values."""
        return _pad_lanes(q, self.key_lanes)

    def join(
        self, k: Shaped[Array, "*rows head_dim"], v: Shaped[Array, "*rows head_dim"]
    ) -> Shaped[Array, "*rows lanes"]:
        """Return keys and values side by side, as a row of a page has them."""
        return _pad_lanes(jnp.concatenate((k, v), axis=-1), self.lanes)


def layout_of(config: AttentionConfig) -> Layout:
    """Return the layout that the kernels use for a config."""
    return Layout(
        kv_heads=config.kv_heads,
        group=config.group,
        head_dim=config.head_dim,
        page_size=config.page_size,
        cache_dtype=jnp.dtype(config.cache_dtype),
        dtype=jnp.dtype(config.dtype),
    )


def tile_rows(dtype: jnp.dtype) -> int:
    """Return how many rows a tile of the vector memory has: 8 of 4 bytes, 16 of 2, 32 of 1."""
    return _SUBLANES * (4 // dtype.itemsize)


def _pad_lanes(x: jax.Array, lanes: int) -> jax.Array:
    padding = lanes - x.shape[-1]
    if padding == 0:
        return x
    return jnp.pad(x, (*((0, 0) for _ in x.shape[:-1]), (0, padding)))
