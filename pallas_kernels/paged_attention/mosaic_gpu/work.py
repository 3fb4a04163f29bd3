"""Work lists of the GPU kernels: one item per thread block, computed from the batch on the device.

They are computed in the program, with comparisons and small reductions only. XLA computes them once
for all layers of a step, the host needs no lengths, and a loop of decode steps on the device
recomputes them in each step.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.paged_attention.batch import PagedBatch

# Columns of an item. An item has NUM_ROWS rows (0: skip it) starting at FIRST_ROW, which are the
# queries of SEQUENCE from FIRST_POSITION on. They attend to the keys [KEY_START, KEY_END), subject
# to the causal mask and window. Only the first KV_LENGTH tokens of the sequence have been written.
# Items without keys have padding rows, whose results are zeros.
SEQUENCE, FIRST_ROW, NUM_ROWS, FIRST_POSITION, KEY_START, KEY_END, KV_LENGTH = range(7)
FIELDS = 8  # padded to 32 bytes

# Columns of `DecodeWork.row_items`: the items [FIRST_ITEM, END_ITEM) have the partial results of
# the row, at index QUERY among the queries of each item.
FIRST_ITEM, END_ITEM, QUERY = range(3)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Block sizes of the kernels of an architecture.

    decode_tokens: most query tokens of a decode item. decode_keys: keys per tile of decode.
    prefill_tokens: rows of a prefill block. item_blocks: thread blocks per item, over all heads.
    blocks_per_core: thread blocks per core among which decode spreads its keys, to balance them.
    """

    decode_tokens: int
    decode_keys: int
    prefill_tokens: int
    item_blocks: int
    blocks_per_core: int = 4


@dataclass(frozen=True)
class DecodeWork:
    """Work list of decode: sequences with few rows, with their keys split to occupy all cores."""

    items: jax.Array  # int32[items, FIELDS]
    row_items: jax.Array  # int32[tokens, 3]; no items for rows that are not decoded


def num_decode_items(
    *, num_sequences: int, table_tokens: int, split_tokens: int, cores: int, blocks: Blocks
) -> int:
    """Return the capacity of a decode work list: one item per sequence, and splits for all cores.

    table_tokens: capacity of one row of the page table in tokens. split_tokens: least number of
    keys for which a split pays off.
    """
    spread = -(-blocks.blocks_per_core * cores // blocks.item_blocks)
    most = num_sequences * (-(-table_tokens // split_tokens) - 1)
    return num_sequences + min(spread, most)


def decode_work(
    batch: PagedBatch,
    *,
    num_tokens: int,
    query_tokens: int,
    num_items: int,
    tile_tokens: int,
    split_tokens: int,
    sliding_window: int | None,
) -> DecodeWork:
    """List the sequences of 1 to `query_tokens` rows, each in splits of nearly equal length.

    A split consists of consecutive tiles of `tile_tokens` keys (Flash-Decoding, Dao et al. 2023).
    Its length depends on the total number of tokens, and is at least `split_tokens`.
    """
    starts, row_counts = batch.query_starts[:-1], jnp.diff(batch.query_starts)
    is_short = (row_counts > 0) & (row_counts <= query_tokens)
    first_positions = batch.kv_lengths - row_counts
    first_tiles = _first_keys(first_positions, sliding_window) // tile_tokens
    tiles = jnp.where(is_short, -(-batch.kv_lengths // tile_tokens) - first_tiles, 0)
    # With N tiles in total, splits of N / spare tiles and one more per sequence always fit.
    spare = max(1, num_items - batch.kv_lengths.shape[0])
    per_split = jnp.maximum(-(-jnp.sum(tiles) // spare), max(1, split_tokens // tile_tokens))
    if num_items == batch.kv_lengths.shape[0]:
        splits = (tiles > 0).astype(jnp.int32)
    else:
        splits = -(-tiles // per_split)
    ends = jnp.cumsum(splits)

    sequences, nth, is_item = _places(ends, splits, num_items)
    first, count, parts = first_tiles[sequences], tiles[sequences], splits[sequences]
    parts = jnp.maximum(parts, 1)
    kv_lengths = batch.kv_lengths[sequences]
    key_ends = (first + (nth + 1) * count // parts) * tile_tokens
    items = _pack(
        sequences,
        starts[sequences],
        jnp.where(is_item, row_counts[sequences], 0),
        first_positions[sequences],
        (first + nth * count // parts) * tile_tokens,
        jnp.minimum(key_ends, kv_lengths),
        kv_lengths,
    )
    rows = jnp.arange(num_tokens)
    of_row = batch.row_sequences
    # Even if the batch is invalid, a row is read from items of its own sequence only.
    is_decoded = (
        is_short[of_row] & (rows >= starts[of_row]) & (rows < batch.query_starts[1:][of_row])
    )
    first_items = jnp.where(is_decoded, (ends - splits)[of_row], 0)
    end_items = jnp.where(is_decoded, ends[of_row], 0)
    queries = jnp.where(is_decoded, rows - starts[of_row], 0)
    return DecodeWork(items, jnp.stack((first_items, end_items, queries), axis=1))


def num_prefill_items(*, num_tokens: int, num_sequences: int, block_tokens: int) -> int:
    """Return the largest possible number of blocks: each sequence, and padding, may end one."""
    ragged = min(num_sequences + 1, num_tokens)
    return (num_tokens + ragged * (block_tokens - 1)) // block_tokens


def prefill_work(
    batch: PagedBatch,
    *,
    num_tokens: int,
    decoded_tokens: int,
    block_tokens: int,
    sliding_window: int | None,
) -> Int32[Array, "items fields"]:
    """List blocks of `block_tokens` rows of all sequences with more than `decoded_tokens` rows.

    The last block of a sequence, which has the most keys, comes first. Padding rows are listed as
    blocks without keys.
    """
    num_sequences = batch.kv_lengths.shape[0]
    starts, row_counts = batch.query_starts, jnp.diff(batch.query_starts, append=num_tokens)
    is_padding = jnp.arange(num_sequences + 1) == num_sequences
    is_listed = is_padding | (row_counts > decoded_tokens)
    blocks = jnp.where(is_listed, -(-row_counts // block_tokens), 0)
    ends = jnp.cumsum(blocks)
    num_items = num_prefill_items(
        num_tokens=num_tokens, num_sequences=num_sequences, block_tokens=block_tokens
    )
    sequences, nth, is_item = _places(ends, blocks, num_items)
    first = (blocks[sequences] - 1 - nth) * block_tokens
    counts = jnp.minimum(row_counts[sequences] - first, block_tokens)
    first_rows = starts[sequences] + first
    has_keys = is_item & (sequences < num_sequences)
    sequences = jnp.minimum(sequences, num_sequences - 1)
    kv_lengths = batch.kv_lengths[sequences]
    first_positions = (batch.kv_lengths - starts[1:])[sequences] + first_rows
    key_starts = _first_keys(first_positions, sliding_window)
    return _pack(
        sequences,
        first_rows,
        jnp.where(is_item, counts, 0),
        first_positions,
        jnp.where(has_keys, key_starts, 0),
        jnp.where(has_keys, first_positions + counts, 0),
        kv_lengths,
    )


def _first_keys(positions: jax.Array, sliding_window: int | None) -> jax.Array:
    """Return the first key that a query at each position sees."""
    if sliding_window is None:
        return jnp.zeros_like(positions)
    return jnp.maximum(positions - sliding_window + 1, 0)


def _places(
    ends: jax.Array, counts: jax.Array, num_items: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the owner of each item, its index among the owner's items, and whether it has one."""
    items = jnp.arange(num_items)
    owners = jnp.sum(ends[None, :] <= items[:, None], axis=1)
    is_item = owners < ends.shape[0]
    owners = jnp.minimum(owners, ends.shape[0] - 1)
    return owners, items - (ends - counts)[owners], is_item


def _pack(*columns: jax.Array) -> Int32[Array, "items fields"]:
    spare = [jnp.zeros_like(columns[0])] * (FIELDS - len(columns))
    return jnp.stack((*columns, *spare), axis=1).astype(jnp.int32)
