"""How pages come into the vector memory of a TPU: by copies that run ahead of the arithmetic.

A kernel works through items: an item is a sequence with a range of its pages. Pages are fetched a
block at a time into one of two buffers. Before the arithmetic on a block begins, the copies of the
next one are on their way, be it of the same item or the first of the next.

The page table stays in main memory. The scalar memory holds the rows of three items: that whose
pages are read, the next, whose first pages are asked for in good time, and the one after it, whose
row is on its way. So what bounds it is the longest sequence, and not how many there are.
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

from pallas_kernels.paged_attention.tpu_layout import LANES, Layout, round_up

# A row of the page table is copied in parts of this many rows of LANES entries, as far as needed.
_TABLE_PART = 8
_NUM_TABLES = 3
_NUM_BUFFERS = 2


class Items(NamedTuple):
    """What a kernel works through, in order; entries from `num_items` on are unspecified.

    Pages [first_pages, first_pages + num_pages) of a sequence's row of the page table; num_pages is
    at least 1.
    """

    num_items: Int32[Array, " 1"]
    sequences: Int32[Array, " items"]
    first_pages: Int32[Array, " items"]
    num_pages: Int32[Array, " items"]


def stack_table(
    page_table: Int32[Array, "sequences pages"],
) -> Int32[Array, "sequences parts lanes"]:
    """Return the page table so that a row, or a part of it, is whole tiles."""
    num_sequences, width = page_table.shape
    rows = round_up(width, LANES) // LANES
    if rows > _TABLE_PART:
        rows = round_up(rows, _TABLE_PART)
    padded = jnp.pad(page_table, ((0, 0), (0, rows * LANES - width)))
    return padded.reshape(num_sequences, rows, LANES)


class Buffers(NamedTuple):
    """The scratch memory of a stream."""

    pages: Any  # cache_dtype[2, kv_heads, block, lanes]
    tables: Any  # int32[3, parts, LANES]
    step: Any  # int32[1]: blocks so far
    page_semaphores: Any
    table_semaphores: Any


def buffers(layout: Layout, *, block: int, table_rows: int) -> Buffers:
    """Return the scratch shapes of a stream of blocks of `block` tokens."""
    shape = (_NUM_BUFFERS, layout.kv_heads, block, layout.lanes)
    return Buffers(
        pages=pltpu.VMEM(shape, layout.cache_dtype),
        tables=pltpu.SMEM((_NUM_TABLES, table_rows, LANES), jnp.int32),
        step=pltpu.SMEM((1,), jnp.int32),
        page_semaphores=pltpu.SemaphoreType.DMA((_NUM_BUFFERS,)),
        table_semaphores=pltpu.SemaphoreType.DMA((_NUM_TABLES,)),
    )


@dataclass(frozen=True)
class Stream:
    """The pages of all items, a block at a time: used inside a kernel, item after item."""

    items: Items  # in SMEM
    table: Any  # int32[sequences, parts, LANES] in HBM
    cache: Any  # in HBM
    buffers: Buffers
    page_size: int

    @property
    def block_pages(self) -> int:
        """Pages in a block."""
        return int(self.buffers.pages.shape[2]) // self.page_size

    def for_each_block(
        self, item: jax.Array, visit: Callable[[jax.Array, jax.Array], None]
    ) -> None:
        """Call visit(block, slot) when block `block` of `item` lies in buffer `slot`.

        Items are to be worked through in order, from 0 to the last.
        """
        num_items, step = self.items.num_items[0], self.buffers.step

        @pl.when(item == 0)
        def _begin() -> None:
            step[0] = 0
            self._start_table(item)

            @pl.when(num_items > 1)
            def _start_second() -> None:
                self._start_table(item + 1)

            self._wait_table(item)
            self._start_block(item, jnp.int32(0), jnp.int32(0))

        @pl.when(item + 2 < num_items)
        def _start_next_table() -> None:
            self._start_table(item + 2)

        num_blocks = pl.cdiv(self.items.num_pages[item], self.block_pages)
        first = step[0]

        def read(block: jax.Array, carry: None) -> None:
            del carry
            slot = (first + block) & 1
            is_last = block + 1 == num_blocks

            @pl.when(jnp.logical_not(is_last))
            def _fetch_same() -> None:
                self._start_block(item, block + 1, 1 - slot)

            @pl.when(jnp.logical_and(is_last, item + 1 < num_items))
            def _fetch_next() -> None:
                self._wait_table(item + 1)
                self._start_block(item + 1, jnp.int32(0), 1 - slot)

            self._wait_block(item, block, slot)
            visit(block, slot)

        lax.fori_loop(0, num_blocks, read, None)
        step[0] = first + num_blocks

    def page(self, item: jax.Array, index: jax.Array) -> jax.Array:
        """Return the page at `index` of the sequence of an item that is being read, or is next."""
        page: jax.Array = self.buffers.tables[lax.rem(item, _NUM_TABLES), index >> 7, index & 127]
        return page

    def _start_table(self, item: jax.Array) -> None:
        self._each_table_part(item, lambda copy: copy.start())

    def _wait_table(self, item: jax.Array) -> None:
        self._each_table_part(item, lambda copy: copy.wait())

    def _each_table_part(self, item: jax.Array, act: Callable[[Any], None]) -> None:
        slot = lax.rem(item, _NUM_TABLES)
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
        first = self.items.first_pages[item] + block * self.block_pages

        def start(nth: jax.Array, carry: None) -> None:
            del carry
            self._page_copy(self.page(item, first + nth), nth, slot).start()

        lax.fori_loop(0, self._num_live(item, block), start, None)

    def _wait_block(self, item: jax.Array, block: jax.Array, slot: jax.Array) -> None:
        def wait(nth: jax.Array, carry: None) -> None:
            del carry
            # One page is as large as another, and that is all that waiting asks for.
            self._page_copy(0, nth, slot).wait()

        lax.fori_loop(0, self._num_live(item, block), wait, None)

    def _num_live(self, item: jax.Array, block: jax.Array) -> jax.Array:
        rest = self.items.num_pages[item] - block * self.block_pages
        return jnp.minimum(self.block_pages, rest)

    def _page_copy(self, page: jax.Array | int, nth: jax.Array, slot: jax.Array) -> Any:
        offset = pl.multiple_of(nth * self.page_size, self.page_size)
        target = self.buffers.pages.at[slot, :, pl.ds(offset, self.page_size)]
        return pltpu.make_async_copy(
            self.cache.at[page], target, self.buffers.page_semaphores.at[slot]
        )


def clear(buffers: Buffers, slot: jax.Array, num_live: jax.Array, *, chunk: int, tile: int) -> None:
    """Zero the rows of a buffer from `num_live` on, to the end of the chunk they are in.

    What was never written may be NaN, and what another sequence left there could be too: a weight
    of 0 would not undo that.
    """
    end = pl.cdiv(num_live, chunk) * (chunk // tile)

    def clear_tile(nth: jax.Array, carry: None) -> None:
        del carry
        rows = pl.ds(pl.multiple_of(nth * tile, tile), tile)
        old = buffers.pages[slot, :, rows]
        row = nth * tile + lax.broadcasted_iota(jnp.int32, old.shape, 1)
        kept = jnp.where(row < num_live, old.astype(jnp.float32), 0.0)
        buffers.pages[slot, :, rows] = kept.astype(old.dtype)

    lax.fori_loop(num_live // tile, end, clear_tile, None)
