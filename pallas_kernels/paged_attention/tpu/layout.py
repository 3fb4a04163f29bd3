"""Cache layout of the TPU kernels: keys and values of a head side by side on the lanes.

A page is [kv_heads, page_size, lanes]: all heads of a device are copied at once, and each head is a
tile of the vector memory. Keys are at lanes [0, head_dim), values at [head_dim, 2 * head_dim), and
zeros follow. A product reads whole registers of 128 lanes, so the windows of keys and of values may
include lanes of each other. Queries are zero at such lanes, and results are cut. Values that are a
part of the keys have no lanes of their own: their window begins at lane 0, too.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from pallas_kernels.paged_attention.batch import AttentionConfig

LANES = 128
# Rows of 32 bits in a tile of the vector memory; narrower types pack 2 or 4 rows into each.
_SUBLANES = 8


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Lanes and tiles of a cache."""

    kv_heads: int
    group: int
    head_dim: int
    page_size: int
    cache_dtype: jnp.dtype
    dtype: jnp.dtype
    value_dim: int | None = None  # see AttentionConfig

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.kv_heads * self.group

    @property
    def lanes(self) -> int:
        """Size of the last axis of the cache."""
        num_planes = 2 if self.value_dim is None else 1
        return round_up(num_planes * self.head_dim, LANES)

    @property
    def key_lanes(self) -> int:
        """Size of the window of keys, which begins at lane 0, and of a padded query."""
        return round_up(self.head_dim, LANES)

    @property
    def value_start(self) -> int:
        """First lane of the window of values."""
        return self.head_dim // LANES * LANES if self.value_dim is None else 0

    @property
    def value_end(self) -> int:
        """End of the window of values."""
        return self.lanes if self.value_dim is None else round_up(self.value_dim, LANES)

    @property
    def value_lanes(self) -> int:
        """Size of the window of values, and of an uncut result."""
        return self.value_end - self.value_start

    @property
    def tile(self) -> int:
        """Tokens per tile, the unit in which rows of a page are written."""
        return tile_rows(self.cache_dtype)

    @property
    def group_rows(self) -> int:
        """Query heads per KV head, rounded up to whole registers."""
        return round_up(self.group, _SUBLANES)

    def cut(self, out: Shaped[Array, "*rows value_lanes"]) -> Shaped[Array, "*rows result_dim"]:
        """Return the lanes of values of an uncut result."""
        if self.value_dim is not None:
            return out[..., : self.value_dim]
        start = self.head_dim - self.value_start
        return out[..., start : start + self.head_dim]

    def pad_queries(self, q: Shaped[Array, "*rows head_dim"]) -> Shaped[Array, "*rows key_lanes"]:
        """Return queries padded with zeros to the window of keys."""
        return _pad_lanes(q, self.key_lanes)

    def join(
        self, k: Shaped[Array, "*rows head_dim"], v: Shaped[Array, "*rows head_dim"] | None
    ) -> Shaped[Array, "*rows lanes"]:
        """Return keys and values side by side, padded to a row of a page."""
        return _pad_lanes(k if v is None else jnp.concatenate((k, v), axis=-1), self.lanes)


def layout_of(config: AttentionConfig) -> Layout:
    """Return the kernels' layout for a config."""
    return Layout(
        kv_heads=config.kv_heads,
        group=config.group,
        head_dim=config.head_dim,
        page_size=config.page_size,
        cache_dtype=jnp.dtype(config.cache_dtype),
        dtype=jnp.dtype(config.dtype),
        value_dim=config.value_dim,
    )


def tile_rows(dtype: jnp.dtype) -> int:
    """Return the rows per tile of the vector memory: 8 of 4 bytes, 16 of 2, 32 of 1."""
    return _SUBLANES * (4 // dtype.itemsize)


def _pad_lanes(x: jax.Array, lanes: int) -> jax.Array:
    padding = lanes - x.shape[-1]
    if padding == 0:
        return x
    return jnp.pad(x, (*((0, 0) for _ in x.shape[:-1]), (0, padding)))
