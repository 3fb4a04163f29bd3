"""Prefetching of pages into the vector memory of a TPU.

A kernel processes a list of items; an item is a sequence with a range of its pages. Pages are
fetched one block at a time, into a ring of buffers. While the kernel computes on one buffer, copies
to all others are in flight, for the same item or for the next ones. So short sequences keep the
memory as busy as long ones.

The page table stays in HBM. The scalar memory holds a ring of its rows: those of the items being
read or fetched, and prefetched rows of the next items. So the scalar memory limits the length of a
sequence, but not the number of sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from pallas_kernels.paged_attention.tpu.layout import LANES, Layout, round_up
from pallas_kernels.paged_attention.tpu.tuning import StreamSizes

# A sequence's page table is copied in parts of this many rows of LANES entries, as far as needed.
_TABLE_PART = 8


class Items(NamedTuple):
    """Items of a kernel, in order; entries from `num_items` on are unspecified.

    An item reads the pages [first_pages, first_pages + num_pages) of its sequence's row of the page
    table; num_pages is at least 1.
    """

    num_items: Int32[Array, " 1"]
    sequences: Int32[Array, " items"]
    first_pages: Int32[Array, " items"]
    num_pages: Int32[Array, " items"]


def stack_table(
    page_table: Int32[Array, "sequences pages"],
) -> Int32[Array, "sequences rows lanes"]:
    """Return the page table, reshaped so that a sequence's row consists of whole tiles."""
    num_sequences, width = page_table.shape
    rows = round_up(width, LANES) // LANES
    if rows > _TABLE_PART:
        rows = round_up(rows, _TABLE_PART)
    padded = jnp.pad(page_table, ((0, 0), (0, rows * LANES - width)))
    return padded.reshape(num_sequences, rows, LANES)


class Buffers(NamedTuple):
    """Scratch memory of a stream."""

    pages: Any  # cache_dtype[buffers, kv_heads, block, lanes]
    tables: Any  # int32[tables, rows, LANES]
    cursor: Any  # int32[4]: see below
    page_semaphores: Any
    table_semaphores: Any


# Entries of the cursor: item and block to fetch next, and the numbers of blocks fetched and read so
# far.
_ITEM, _BLOCK, _NUM_FETCHED, _NUM_READ = range(4)


def buffers(layout: Layout, sizes: StreamSizes, *, table_rows: int) -> Buffers:
    """Return the scratch shapes of a stream."""
    shape = (sizes.buffers, layout.kv_heads, sizes.block, layout.lanes)
    return Buffers(
        pages=pltpu.VMEM(shape, layout.cache_dtype),
        tables=pltpu.SMEM((sizes.tables, table_rows, LANES), jnp.int32),
        cursor=pltpu.SMEM((4,), jnp.int32),
        page_semaphores=pltpu.SemaphoreType.DMA((sizes.buffers,)),
        table_semaphores=pltpu.SemaphoreType.DMA((sizes.tables,)),
    )


@dataclass(frozen=True)
class Stream:
    """Stream of the pages of all items, one block at a time, used inside a kernel."""

    items: Items  # in SMEM
    table: Any  # int32[sequences, rows, LANES] in HBM
    cache: Any  # in HBM
    buffers: Buffers
    layout: Layout
    sizes: StreamSizes

    def for_each_chunk(
        self,
        item: jax.Array,
        end: jax.Array,
        visit: Callable[[jax.Array, jax.Array, jax.Array], None],
        *,
        at_end: Callable[[jax.Array, jax.Array], None] | None = None,
    ) -> None:
        """Call visit(slot, offset, position) for each chunk of an item, in order.

        Rows [offset, offset + chunk) of buffer `slot` then hold the tokens from `position` on, and
        zeros from position `end` on; `end` is in the last page of the item. Before the chunks of
        the last block, at_end(slot, num_live) is called; `num_live` rows are before `end`.

        Must be called for all items in order.
        """
        cursor, sizes = self.buffers.cursor, self.sizes
        first = self.items.first_pages[item] * self.layout.page_size

        @pl.when(item == 0)
        def _begin() -> None:
            self._begin()

        def read(block: jax.Array, carry: None) -> None:
            del carry
            self._fetch()
            num_read = cursor[_NUM_READ]
            slot = lax.rem(num_read, sizes.buffers)
            cursor[_NUM_READ] = num_read + 1
            self._wait_block(item, block, slot)
            start = first + block * sizes.block
            num_live = jnp.minimum(end - start, sizes.block)

            @pl.when(start + num_live == end)
            def _end() -> None:
                if at_end is not None:
                    at_end(slot, num_live)
                self._clear(slot, num_live)

            def visit_chunk(chunk: jax.Array, carry: None) -> None:
                del carry
                offset = pl.multiple_of(chunk * sizes.chunk, sizes.chunk)
                visit(slot, offset, start + offset)

            lax.fori_loop(0, pl.cdiv(num_live, sizes.chunk), visit_chunk, None)

        lax.fori_loop(0, self._num_blocks(item), read, None)

    def _begin(self) -> None:
        for entry in (_ITEM, _BLOCK, _NUM_FETCHED, _NUM_READ):
            self.buffers.cursor[entry] = 0

        def start(item: jax.Array, carry: None) -> None:
            del carry
            self._start_table(item)

        num_ahead = jnp.minimum(self.sizes.tables_ahead, self.items.num_items[0])
        lax.fori_loop(0, num_ahead, start, None)
        for _ in range(self.sizes.buffers - 1):
            self._fetch()

    def _fetch(self) -> None:
        """Start the copies of the next block, if there is one, into its free buffer."""
        cursor, num_items = self.buffers.cursor, self.items.num_items[0]
        item, block, num_fetched = cursor[_ITEM], cursor[_BLOCK], cursor[_NUM_FETCHED]

        @pl.when(item < num_items)
        def _fetch() -> None:
            @pl.when(block == 0)
            def _turn_to_item() -> None:
                self._wait_table(item)
                # The ring's row of an item whose last block was read is free.
                later = item + self.sizes.tables_ahead

                @pl.when(later < num_items)
                def _start_later() -> None:
                    self._start_table(later)

            self._start_block(item, block, lax.rem(num_fetched, self.sizes.buffers))
            is_last = block + 1 == self._num_blocks(item)
            cursor[_ITEM] = jnp.where(is_last, item + 1, item)
            cursor[_BLOCK] = jnp.where(is_last, 0, block + 1)
            cursor[_NUM_FETCHED] = num_fetched + 1

    def _num_blocks(self, item: jax.Array) -> jax.Array:
        return pl.cdiv(self.items.num_pages[item], self._block_pages)

    @property
    def _block_pages(self) -> int:
        return self.sizes.block // self.layout.page_size

    def page(self, item: jax.Array, index: jax.Array) -> jax.Array:
        """Return page `index` of an item's sequence. The item must be being read or fetched."""
        slot = lax.rem(item, self.sizes.tables)
        page: jax.Array = self.buffers.tables[slot, index // LANES, lax.rem(index, LANES)]
        return page

    def _start_table(self, item: jax.Array) -> None:
        self._each_table_part(item, lambda copy: copy.start())

    def _wait_table(self, item: jax.Array) -> None:
        self._each_table_part(item, lambda copy: copy.wait())

    def _each_table_part(self, item: jax.Array, act: Callable[[Any], None]) -> None:
        slot = lax.rem(item, self.sizes.tables)
        source = self.table.at[self.items.sequences[item]]
        target = self.buffers.tables.at[slot]
        semaphore = self.buffers.table_semaphores.at[slot]
        if source.shape[0] <= _TABLE_PART:
            act(pltpu.make_async_copy(source, target, semaphore))
            return
        entries = _TABLE_PART * LANES
        first_page = self.items.first_pages[item]
        end_page = first_page + self.items.num_pages[item]

        def copy_part(part: jax.Array, carry: None) -> None:
            del carry
            rows = pl.ds(pl.multiple_of(part * _TABLE_PART, _TABLE_PART), _TABLE_PART)
            act(pltpu.make_async_copy(source.at[rows], target.at[rows], semaphore))

        lax.fori_loop(first_page // entries, pl.cdiv(end_page, entries), copy_part, None)

    def _start_block(self, item: jax.Array, block: jax.Array, slot: jax.Array) -> None:
        first = self.items.first_pages[item] + block * self._block_pages

        def start(nth: jax.Array, carry: None) -> None:
            del carry
            self._page_copy(self.page(item, first + nth), nth, slot).start()

        lax.fori_loop(0, self._num_live(item, block), start, None)

    def _wait_block(self, item: jax.Array, block: jax.Array, slot: jax.Array) -> None:
        def wait(nth: jax.Array, carry: None) -> None:
            del carry
            # Waiting depends on the size of a copy only, so any page will do.
            self._page_copy(0, nth, slot).wait()

        lax.fori_loop(0, self._num_live(item, block), wait, None)

    def _num_live(self, item: jax.Array, block: jax.Array) -> jax.Array:
        rest = self.items.num_pages[item] - block * self._block_pages
        return jnp.minimum(self._block_pages, rest)

    def _page_copy(self, page: jax.Array | int, nth: jax.Array, slot: jax.Array) -> Any:
        offset = pl.multiple_of(nth * self.layout.page_size, self.layout.page_size)
        target = self.buffers.pages.at[slot, :, pl.ds(offset, self.layout.page_size)]
        return pltpu.make_async_copy(
            self.cache.at[page], target, self.buffers.page_semaphores.at[slot]
        )

    def _clear(self, slot: jax.Array, num_live: jax.Array) -> None:
        """Zero the rows of a buffer from `num_live` on, to the end of the chunk they are in.

        Unwritten slots, and those of other sequences, may be NaN, and a weight of 0 times NaN is
        NaN.
        """
        tile, chunk = self.layout.tile, self.sizes.chunk
        pages = self.buffers.pages

        def clear_tile(nth: jax.Array, carry: None) -> None:
            del carry
            rows = pl.ds(pl.multiple_of(nth * tile, tile), tile)
            old = pages[slot, :, rows]
            row = nth * tile + lax.broadcasted_iota(jnp.int32, old.shape, 1)
            kept = jnp.where(row < num_live, old.astype(jnp.float32), 0.0)
            pages[slot, :, rows] = kept.astype(old.dtype)

        end = pl.cdiv(num_live, chunk) * (chunk // tile)
        lax.fori_loop(num_live // tile, end, clear_tile, None)
