"""Kernel that writes a prefill's keys and values into their pages, for TPUs.

A sequence's rows may begin anywhere in the batch and in a page, but copies need whole tiles on both
sides. So each strip of a page is assembled in the vector memory: the new rows are fetched together
with the tiles around them, shifted, and merged with the old contents of the strip.

This kernel runs before the prefill's kernel, which takes its cache as an operand. So no page is
read before its rows are written.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int32, Shaped

from pallas_kernels.paged_attention.batch import PagedBatch
from pallas_kernels.paged_attention.tpu.layout import Layout, round_up
from pallas_kernels.paged_attention.tpu.tuning import strip_rows

_NUM_BUFFERS = 2


class Strips(NamedTuple):
    """Strips, parts of pages with new rows; entries from `num_strips` on are unspecified.

    Rows [begins, ends) of a strip are new; row 0 corresponds to row `sources` of the batch.
    """

    num_strips: Int32[Array, " 1"]
    pages: Int32[Array, " strips"]
    offsets: Int32[Array, " strips"]  # where in its page a strip begins
    sources: Int32[Array, " strips"]
    begins: Int32[Array, " strips"]
    ends: Int32[Array, " strips"]


def plan(
    batch: PagedBatch,
    is_prefill: Bool[Array, " sequences"],
    *,
    num_tokens: int,
    page_size: int,
    strip: int,
) -> Strips:
    """Return the strips that contain the rows of the sequences selected by `is_prefill`."""
    row_starts = batch.query_starts[:-1]
    end_positions = batch.kv_lengths
    start_positions = end_positions - (batch.query_starts[1:] - row_starts)
    firsts = start_positions // strip
    counts = jnp.where(is_prefill, -(-end_positions // strip) - firsts, 0)
    ends = jnp.cumsum(counts)
    # A sequence of n > 1 rows has at most n / strip + 2 strips.
    capacity = num_tokens // strip + 2 * min(counts.shape[0], num_tokens // 2 + 1)
    strips = jnp.arange(capacity, dtype=jnp.int32)
    sequences = jnp.sum(ends[None, :] <= strips[:, None], axis=1, dtype=jnp.int32)
    sequences = jnp.minimum(sequences, counts.shape[0] - 1)
    firsts = (firsts - ends + counts)[sequences] + strips
    positions = firsts * strip
    starts = start_positions[sequences]
    return Strips(
        num_strips=ends[-1:],
        pages=batch.page_table.at[sequences, positions // page_size].get(mode="clip"),
        offsets=positions % page_size,
        sources=row_starts[sequences] + positions - starts,
        begins=jnp.maximum(starts - positions, 0),
        ends=jnp.minimum(end_positions[sequences] - positions, strip),
    )


def write(
    new: Shaped[Array, "tokens kv_heads lanes"],
    cache: Shaped[Array, "pages kv_heads page_size lanes"],
    batch: PagedBatch,
    is_prefill: Bool[Array, " sequences"],
    *,
    layout: Layout,
    options: dict[str, Any],
) -> jax.Array:
    """Write the rows of the sequences selected by `is_prefill`; return the cache, in place."""
    num_tokens, tile, strip = new.shape[0], layout.tile, strip_rows(layout)
    strips = plan(batch, is_prefill, num_tokens=num_tokens, page_size=layout.page_size, strip=strip)
    # A window of strip + tile rows may begin a strip before the first row and end after the last.
    padding = (strip, round_up(num_tokens, tile) - num_tokens + strip + tile)
    rows = jnp.pad(new.transpose(1, 0, 2), ((0, 0), padding, (0, 0)))

    def buffer(num_rows: int) -> Any:
        shape = (_NUM_BUFFERS, layout.kv_heads, num_rows, layout.lanes)
        return pltpu.VMEM(shape, layout.cache_dtype)

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    result: jax.Array = pl.pallas_call(
        partial(_kernel, layout=layout, strip=strip),
        out_shape=jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(),
            in_specs=[anywhere, anywhere],
            out_specs=anywhere,
            scratch_shapes=[
                _Scratch(
                    rows=buffer(strip + tile),
                    old=buffer(strip),
                    new=buffer(strip),
                    reads=pltpu.SemaphoreType.DMA((_NUM_BUFFERS,)),
                    writes=pltpu.SemaphoreType.DMA((_NUM_BUFFERS,)),
                )
            ],
        ),
        input_output_aliases={len(strips) + 1: 0},
        name="paged_attention_write",
        **options,
    )(strips, rows, cache)
    return result


class _Scratch(NamedTuple):
    rows: Any  # cache_dtype[2, kv_heads, strip + tile, lanes]
    old: Any  # cache_dtype[2, kv_heads, strip, lanes]
    new: Any  # likewise
    reads: Any
    writes: Any


def _kernel(
    strips: Strips,
    rows: Any,
    _: Any,
    cache: Any,
    scratch: _Scratch,
    *,
    layout: Layout,
    strip: int,
) -> None:
    """Merge the strips in order, while the next is fetched and the previous is copied back."""
    num_strips, tile = strips.num_strips[0], layout.tile

    def shift(nth: jax.Array) -> jax.Array:
        """Return the offset of a strip's rows in its window."""
        return lax.rem(strips.sources[nth] + strip, tile)

    def each_read(nth: jax.Array, act: Any) -> None:
        slot = nth & 1
        semaphore = scratch.reads.at[slot]
        first = pl.multiple_of(strips.sources[nth] + strip - shift(nth), tile)
        window = rows.at[:, pl.ds(first, strip + tile)]
        act(pltpu.make_async_copy(window, scratch.rows.at[slot], semaphore))

        @pl.when((strips.begins[nth] > 0) | (strips.ends[nth] < strip))
        def _read_old() -> None:
            act(pltpu.make_async_copy(place(nth), scratch.old.at[slot], semaphore))

    def place(nth: jax.Array) -> Any:
        offset = pl.multiple_of(strips.offsets[nth], tile)
        return cache.at[strips.pages[nth], :, pl.ds(offset, strip)]

    def copy_back(nth: jax.Array) -> Any:
        slot = nth & 1
        return pltpu.make_async_copy(scratch.new.at[slot], place(nth), scratch.writes.at[slot])

    @pl.when(num_strips > 0)
    def _begin() -> None:
        each_read(jnp.int32(0), lambda copy: copy.start())

    def merge(nth: jax.Array, carry: None) -> None:
        del carry
        slot = nth & 1

        @pl.when(nth + 1 < num_strips)
        def _read_next() -> None:
            each_read(nth + 1, lambda copy: copy.start())

        each_read(nth, lambda copy: copy.wait())

        @pl.when(nth >= _NUM_BUFFERS)
        def _wait() -> None:
            copy_back(nth - _NUM_BUFFERS).wait()

        row = lax.broadcasted_iota(jnp.int32, (strip, layout.lanes), 0)
        is_new = (row >= strips.begins[nth]) & (row < strips.ends[nth])

        num_rows = strip + tile
        rotation = lax.rem(num_rows - shift(nth), num_rows)

        def merge_head(head: jax.Array, carry: None) -> None:
            del carry
            # Rows of 32 bits can be rotated by any number of rows, packed rows cannot.
            window = scratch.rows[slot, head].astype(jnp.float32)
            new = pltpu.roll(window, rotation, 0)[:strip]
            old = scratch.old[slot, head].astype(jnp.float32)
            scratch.new[slot, head] = jnp.where(is_new, new, old).astype(layout.cache_dtype)

        lax.fori_loop(0, layout.kv_heads, merge_head, None)
        copy_back(nth).start()

    lax.fori_loop(0, num_strips, merge, None)
    for behind in range(1, _NUM_BUFFERS + 1):

        @pl.when(num_strips >= behind)
        def _finish(behind: int = behind) -> None:
            copy_back(num_strips - behind).wait()
