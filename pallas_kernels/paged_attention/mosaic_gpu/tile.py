"""Tiles of scores in the Mosaic GPU kernels: work items, masking, and copies of pages and rows.

The rows of a tile are queries times the query heads of one key/value head, with the heads of a
query adjacent; its columns are keys. This module is common to all architectures, which multiply and
store tiles differently.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu.combine import row_layout
from pallas_kernels.paged_attention.mosaic_gpu.work import (
    FIRST_POSITION,
    FIRST_ROW,
    KEY_END,
    KEY_START,
    KV_LENGTH,
    NUM_ROWS,
    SEQUENCE,
)

KEYS = 64

# The maximum that a row starts with is UNSEEN, and a masked score is MASKED. So a tile in which a
# row sees nothing adds exactly nothing to it, for any positive factor:
#   max(UNSEEN, MASKED * factor) = UNSEEN      the maximum stays, and the decay is exp2(0) = 1
#   MASKED * factor - UNSEEN = -inf            the weights are exp2(-inf) = 0
# This holds however the compiler rounds. Mosaic lets LLVM contract `score * factor - maximum` into
# one FMA, which subtracts the rounded maximum from the exact product. With a finite MASKED the
# rounding error of the product remains: at -1e30 it is up to 2**73, whose exp2 is infinite.
# UNSEEN is finite because -inf - -inf is NaN. Every score of a model is above it, and replaces it
# with a decay of 0.
MASKED = -math.inf
UNSEEN = -1e30

_LOG2E = math.log2(math.e)


def check(config: AttentionConfig, *, max_group: int) -> None:
    """Raise Unsupported, with the reason, if tiles of KEYS keys cannot be used for `config`."""
    if config.cache_dtype != config.dtype:
        raise Unsupported(
            f"multiplies {config.dtype} queries with a cache of the same, not of"
            f" {config.cache_dtype}"
        )
    if config.head_dim % 32 or not 32 <= config.head_dim <= 256:
        raise Unsupported(f"head_dim must be a multiple of 32 up to 256, got {config.head_dim}")
    size = config.page_size
    if size % KEYS and (size < 8 or KEYS % size):
        raise Unsupported(f"page_size must be 8, 16, 32 or a multiple of {KEYS}, got {size}")
    if config.group > max_group:
        raise Unsupported(
            f"a tile has {max_group} rows, too few for {config.group} query heads per key/value"
            " head"
        )


def transforms(swizzle: int) -> tuple[Any, ...]:
    """Return the transforms of 16-bit tiles in shared memory, with rows of `swizzle` bytes."""
    # mypy takes the classes for abstract.
    tiling, swizzling = cast(Any, plgpu.TilingTransform), cast(Any, plgpu.SwizzleTransform)
    return tiling((8, swizzle // 2)), swizzling(swizzle)


def fold(
    q: Float[Array, "tokens heads head_dim"], kv_heads: int, *, padding: int
) -> Float[Array, "kv_heads rows head_dim"]:
    """Fold the query heads of each key/value head into rows: tokens * group.

    padding: number of additional rows, so that a tile may start at any row.
    """
    num_tokens, heads, head_dim = q.shape
    by_kv_head = q.reshape(num_tokens, kv_heads, heads // kv_heads, head_dim)
    folded: jax.Array = by_kv_head.swapaxes(0, 1).reshape(kv_heads, -1, head_dim)
    return jnp.pad(folded, ((0, 0), (0, padding), (0, 0)))


def fold_sinks(
    sinks: Float[Array, " heads"], kv_heads: int, rows: int
) -> Float[Array, "kv_heads rows"]:
    """Return the sink of every row of a tile, in base 2: the initial maximum of the row.

    A sink of -inf counts as none; then the row starts with UNSEEN.
    """
    by_kv_head = jnp.maximum(sinks.reshape(kv_heads, -1) * _LOG2E, UNSEEN)
    return jnp.tile(by_kv_head, (1, -(-rows // by_kv_head.shape[1])))[:, :rows]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Item of a work list in a kernel: int32 scalars, see work.py."""

    sequence: jax.Array
    first_row: jax.Array
    num_rows: jax.Array
    first_position: jax.Array
    key_start: jax.Array
    key_end: jax.Array
    kv_length: jax.Array

    @classmethod
    def read(cls, items: Any, index: jax.Array) -> "Item":
        """Read item `index` of a reference to int32[items, fields]."""
        return cls(
            sequence=items[index, SEQUENCE],
            first_row=items[index, FIRST_ROW],
            num_rows=items[index, NUM_ROWS],
            first_position=items[index, FIRST_POSITION],
            key_start=items[index, KEY_START],
            key_end=items[index, KEY_END],
            kv_length=items[index, KV_LENGTH],
        )

    @property
    def first_tile(self) -> jax.Array:
        """Index of the tile of keys in which the item starts."""
        return self.key_start // KEYS

    @property
    def num_tiles(self) -> jax.Array:
        """Number of tiles of keys; 0 if there are no keys."""
        return (self.key_end + KEYS - 1) // KEYS - self.first_tile


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Pages of a tile's keys. Each page, or part of a page, is copied as one box."""

    cache: Any  # reference to [2, pages, kv_heads, page_size, head_dim]
    table: Any  # reference to int32[sequences, pages]
    kv_head: jax.Array
    page_size: int

    @property
    def per_tile(self) -> int:
        """Number of boxes per tile."""
        return max(1, KEYS // self.page_size)

    def fetch(
        self, plane: int, item: Item, tile: jax.Array, copy: Callable[[Any, Any], None], to: Any
    ) -> None:
        """Copy the boxes of a tile of keys (plane 0) or values (1) to `to`, [KEYS, head_dim].

        After a sequence's last page, that page is copied again, because later entries of the page
        table may be invalid.
        """
        rows = min(KEYS, self.page_size)
        last_page = (item.kv_length - 1) // self.page_size
        for box in range(self.per_tile):
            key = tile * KEYS + box * rows
            page = self.table[item.sequence, jnp.minimum(key // self.page_size, last_page)]
            source = self.cache.at[plane, page, self.kv_head]
            if self.page_size > KEYS:
                source = source.at[pl.ds(lax.rem(key, self.page_size), rows)]
            copy(source, to.at[pl.ds(box * rows, rows)])


def erase_unwritten(values: Any, first_key: jax.Array, item: Item, layout: Any) -> None:
    """Zero the values that were never written, because a weight of 0 times NaN is NaN.

    values: reference to [KEYS, head_dim] in shared memory, for the keys from `first_key` on.
    """
    found = plgpu.load(values, layout=layout)
    keys = first_key + plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=layout)
    values[...] = jnp.where(keys < item.kv_length, found, jnp.zeros_like(found))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Conversion of products of queries and keys to scores.

    layout: layout of a tile in registers.
    """

    scale: float
    config: AttentionConfig
    layout: Any

    @property
    def factor(self) -> float:
        """Factor from a score to an exponent of 2."""
        return _LOG2E * (self.scale if self.config.soft_cap is None else self.config.soft_cap)

    def __call__(
        self,
        products: Float[Array, "rows keys"],
        first_key: jax.Array,
        first_position: jax.Array,
        num_queries: jax.Array | int,
    ) -> Float[Array, "rows keys"]:
        """Return a tile's scores before `factor`: soft-capped, and masked where invisible.

        The tile has `num_queries` queries from position `first_position` on; other rows are
        unspecified. The mask is skipped if all queries see all keys.
        """
        scores, window = self._bound(products), self.config.sliding_window
        is_cut = first_key + products.shape[1] > first_position + 1
        if window is not None:
            is_cut |= first_key + window < first_position + num_queries

        def mask(scores: jax.Array) -> jax.Array:
            rows = plgpu.broadcasted_iota(
                jnp.int32, scores.shape[:1], 0, layout=self.layout.reduce(1)
            )
            positions = spread(first_position + rows // self.config.group, scores.shape)
            keys = first_key + plgpu.broadcasted_iota(
                jnp.int32, scores.shape, 1, layout=self.layout
            )
            is_visible = keys <= positions
            if window is not None:
                is_visible &= keys > positions - window
            return jnp.where(is_visible, scores, MASKED)

        masked: jax.Array = lax.cond(is_cut, mask, lambda scores: scores, scores)
        return masked

    def _bound(self, products: jax.Array) -> jax.Array:
        """Apply the soft cap: tanh(x) = 1 - 2 / (1 + exp(2 x)).

        The hardware's tanh has an error of 2^-11, which a cap of 50 amplifies to 0.02 in the
        exponent.
        """
        cap = self.config.soft_cap
        if cap is None:
            return products
        return 1.0 - 2.0 / (1.0 + jnp.exp2(products * (2 * _LOG2E * self.scale / cap)))


def spread(column: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcast one number per row over all columns."""
    return lax.broadcast_in_dim(column, shape, (0,))


def store_rows(
    tile: Any, group: int, num_queries: jax.Array, out: Callable[[jax.Array], Any]
) -> None:
    """Store a tile's results query by query, so that rows after a ragged block are not overwritten.

    tile: reference to [rows, head_dim] in shared memory. out: returns the reference to
    [group, head_dim] for the results of a query.
    """
    layout = row_layout(group, tile.shape[1])

    def store(query: jax.Array, _: None) -> None:
        found = tile.at[pl.ds(query * group, group)]
        out(query)[...] = plgpu.load(found, layout=layout, optimized=False)

    lax.fori_loop(0, num_queries, store, None)


def store_sums(
    sums: Any,
    config: AttentionConfig,
    num_queries: jax.Array,
    kv_head: jax.Array,
    out: Callable[[jax.Array], Any],
) -> None:
    """Store one number per row, float32[rows], as `store_rows` does."""
    group = config.group
    layout = row_layout(group, config.head_dim).reduce(1)

    def store(query: jax.Array, _: None) -> None:
        if group == 1:  # Mosaic has no layout for a single number
            out(query)[kv_head] = sums[query]
        else:
            found = sums.at[pl.ds(query * group, group)]
            out(query).at[pl.ds(kv_head * group, group)][...] = plgpu.load(
                found, layout=layout, optimized=False
            )

    lax.fori_loop(0, num_queries, store, None)
