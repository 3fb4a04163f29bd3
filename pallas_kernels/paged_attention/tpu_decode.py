"""Paged attention with one query per sequence, for TPUs.

A sequence's pages stream through the vector memory (see tpu_stream.py); every live byte of the
cache is read once. The new key and value are put into the last block there, and the tile of the
page that they lie in is copied back: the cache is written in place, by the same kernel.

Paging is that of PagedAttention (Kwon et al. 2023, arXiv:2309.06180); the split of decode from
prefill, the write fused into the read and the prefetch across sequences are ideas of Ragged Paged
Attention (arXiv:2604.15464).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32, Shaped

from pallas_kernels.paged_attention.batch import PagedBatch
from pallas_kernels.paged_attention.tpu_layout import LANES, Layout
from pallas_kernels.paged_attention.tpu_softmax import MASKED, Scoring, Softmax, softmax
from pallas_kernels.paged_attention.tpu_stream import (
    Buffers,
    Items,
    Stream,
    buffers,
    clear,
    stack_table,
)
from pallas_kernels.paged_attention.tpu_tuning import DecodeSizes

# Tiles on their way to the cache at a time.
_NUM_TILES = 2


class Work(NamedTuple):
    """Scalars of a decode: items, and the blocks of rows in which they lie.

    Visit i is of row block `blocks[i]`, and there of items [starts[i], starts[i + 1]).
    """

    items: Items
    rows: Int32[Array, " items"]
    lengths: Int32[Array, " items"]
    blocks: Int32[Array, " visits"]
    starts: Int32[Array, " visits_and_end"]


def plan(
    batch: PagedBatch,
    is_decode: Bool[Array, " sequences"],
    *,
    page_size: int,
    scoring: Scoring,
    rows: int,
) -> tuple[Work, Int32[Array, ""]]:
    """Return the work on the sequences that `is_decode` names, and the number of visits."""
    count = jnp.sum(is_decode, dtype=jnp.int32)
    sequences = jnp.argsort(jnp.logical_not(is_decode), stable=True).astype(jnp.int32)
    indices = jnp.arange(sequences.shape[0], dtype=jnp.int32)
    lengths = batch.kv_lengths[sequences]
    first_pages = scoring.first_visible(lengths - 1) // page_size
    item_rows = batch.query_starts[:-1][sequences]
    blocks = item_rows // rows
    is_first = (indices < count) & ((indices == 0) | (blocks != jnp.roll(blocks, 1)))
    starts = jnp.sort(jnp.where(is_first, indices, count))
    work = Work(
        items=Items(
            num_items=count[None],
            sequences=sequences,
            first_pages=first_pages,
            num_pages=-(-lengths // page_size) - first_pages,
        ),
        rows=item_rows,
        lengths=lengths,
        blocks=blocks.at[starts].get(mode="clip"),
        starts=jnp.concatenate((starts, count[None])),
    )
    # A step of nothing keeps the loop over steps from being empty, which may not be waited for.
    return work, jnp.maximum(jnp.sum(is_first, dtype=jnp.int32), 1)


def decode(
    q: Float[Array, "tokens heads key_lanes"],
    new: Shaped[Array, "tokens kv_heads lanes"],
    cache: Shaped[Array, "pages kv_heads page_size lanes"],
    previous: Float[Array, "tokens heads value_lanes"] | None,
    sinks: Float[Array, " heads"] | None,
    batch: PagedBatch,
    is_decode: Bool[Array, " sequences"],
    *,
    layout: Layout,
    scoring: Scoring,
    sizes: DecodeSizes,
    options: dict[str, Any],
) -> tuple[Float[Array, "tokens heads value_lanes"], jax.Array]:
    """Attend with the rows of the sequences that `is_decode` names, and write their `new` rows.

    Returns results and the cache. The rows of other sequences are those of `previous`, which is
    overwritten; without one they are unspecified.
    """
    num_tokens, num_heads, _ = q.shape
    work, num_visits = plan(
        batch,
        is_decode,
        page_size=layout.page_size,
        scoring=scoring,
        rows=sizes.rows,
    )
    table = stack_table(batch.page_table)
    if sinks is not None:
        by_group = sinks.reshape(layout.kv_heads, layout.group)
        by_group = jnp.pad(by_group, ((0, 0), (0, layout.group_rows - layout.group)))
        sinks = jnp.broadcast_to(by_group[:, :, None], (*by_group.shape, LANES))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)

    def rows_of(width: int, lanes: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (sizes.rows, width, lanes), lambda visit, work: (work.blocks[visit], 0, 0)
        )

    out_spec = rows_of(num_heads, layout.value_lanes)
    specs = _Inputs(
        cache=anywhere,
        table=anywhere,
        q=rows_of(num_heads, layout.key_lanes),
        new=rows_of(layout.kv_heads, layout.lanes),
        previous=None if previous is None else out_spec,
        sinks=None if sinks is None else pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)),
    )
    # Operands are counted from the first scalar on.
    aliases = {len(jax.tree.leaves(work)): 1}
    if previous is not None:
        aliases[len(jax.tree.leaves(work)) + 4] = 0
    result: tuple[jax.Array, jax.Array] = pl.pallas_call(
        partial(_kernel, layout=layout, scoring=scoring, sizes=sizes),
        out_shape=(
            jax.ShapeDtypeStruct((num_tokens, num_heads, layout.value_lanes), q.dtype),
            jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(num_visits,),
            in_specs=[specs],
            out_specs=(out_spec, anywhere),
            scratch_shapes=[_scratch(layout, sizes, table_rows=table.shape[1])],
        ),
        input_output_aliases=aliases,
        name="paged_attention_decode",
        **options,
    )(work, _Inputs(cache, table, q, new, previous, sinks))
    return result


class _Inputs(NamedTuple):
    cache: Any
    table: Any
    q: Any
    new: Any
    previous: Any
    sinks: Any


class _Scratch(NamedTuple):
    buffers: Buffers
    softmax: Softmax
    queries: Any  # float32[kv_heads, group_rows, key_lanes]
    results: Any  # float32[heads, value_lanes]
    row: Any  # float32[kv_heads, lanes]: the new keys and values
    tiles: Any  # cache_dtype[2, kv_heads, tile, lanes]: what is written to the cache
    tile_semaphores: Any


def _scratch(layout: Layout, sizes: DecodeSizes, *, table_rows: int) -> _Scratch:
    kv_heads, rows = layout.kv_heads, layout.group_rows
    tiles = (_NUM_TILES, kv_heads, layout.tile, layout.lanes)
    return _Scratch(
        buffers=buffers(layout, block=sizes.block, table_rows=table_rows),
        softmax=softmax(kv_heads, rows, layout.value_lanes),
        queries=pltpu.VMEM((kv_heads, rows, layout.key_lanes), jnp.float32),
        results=pltpu.VMEM((layout.heads, layout.value_lanes), jnp.float32),
        row=pltpu.VMEM((kv_heads, layout.lanes), jnp.float32),
        tiles=pltpu.VMEM(tiles, layout.cache_dtype),
        tile_semaphores=pltpu.SemaphoreType.DMA((_NUM_TILES,)),
    )


def _kernel(
    work: Work,
    inputs: _Inputs,
    out: Any,
    cache: Any,
    scratch: _Scratch,
    *,
    layout: Layout,
    scoring: Scoring,
    sizes: DecodeSizes,
) -> None:
    """Attend with the items of one block of rows. `cache` is inputs.cache, to be written."""
    visit = pl.program_id(0)
    stream = Stream(work.items, inputs.table, cache, scratch.buffers, layout.page_size)
    writer = _Writer(stream, work, scratch, layout)
    query = _Query(inputs, scratch, layout, scoring, sizes)
    if inputs.previous is not None:
        out[...] = inputs.previous[...]

    def attend(item: jax.Array, carry: None) -> None:
        del carry
        row, length = lax.rem(work.rows[item], sizes.rows), work.lengths[item]
        first = work.items.first_pages[item] * layout.page_size
        scratch.row[...] = inputs.new[row].astype(jnp.float32)
        query.begin(row)

        def visit_block(block: jax.Array, slot: jax.Array) -> None:
            start = first + block * sizes.block
            num_live = jnp.minimum(length - start, sizes.block)

            @pl.when(start + num_live == length)
            def _write() -> None:
                writer.write(item, slot, num_live)
                clear(scratch.buffers, slot, num_live, chunk=sizes.chunk, tile=layout.tile)

            def visit_chunk(chunk: jax.Array, carry: None) -> None:
                del carry
                offset = pl.multiple_of(chunk * sizes.chunk, sizes.chunk)
                query.add(slot, offset, start + offset, length)

            lax.fori_loop(0, pl.cdiv(num_live, sizes.chunk), visit_chunk, None)

        stream.for_each_block(item, visit_block)
        query.store(out, row)

    lax.fori_loop(work.starts[visit], work.starts[visit + 1], attend, None)

    @pl.when(work.starts[visit + 1] == work.items.num_items[0])
    def _finish() -> None:
        writer.finish()


@dataclass(frozen=True)
class _Query:
    """The query of a sequence: all its heads, those of each KV head in tiles of their own."""

    inputs: _Inputs
    scratch: _Scratch
    layout: Layout
    scoring: Scoring
    sizes: DecodeSizes

    def begin(self, row: jax.Array) -> None:
        """Load the query and forget all keys."""
        group, sinks = self.layout.group, self.inputs.sinks
        queries = self.inputs.q[row].astype(jnp.float32)
        for head in range(self.layout.kv_heads):
            self.scratch.queries[head, :group] = queries[head * group : (head + 1) * group]
            self.scratch.softmax.begin(head, None if sinks is None else sinks[head])

    def add(self, slot: jax.Array, offset: jax.Array, start: jax.Array, length: jax.Array) -> None:
        """Attend to a chunk of the pages in buffer `slot`, at positions from `start` on."""
        layout, chunk = self.layout, self.sizes.chunk
        shape = (layout.group_rows, chunk)
        positions = start + lax.broadcasted_iota(jnp.int32, shape, 1)
        is_visible = positions < length
        if self.scoring.sliding_window is not None:
            is_visible &= positions >= length - self.scoring.sliding_window

        def multiply(head: jax.Array, carry: None) -> None:
            del carry
            keys = self.scratch.buffers.pages[slot, head, pl.ds(offset, chunk)]
            keys = keys.astype(layout.dtype)
            queries = self.scratch.queries[head].astype(layout.dtype)
            scores = self.scoring.score(queries, keys[:, : layout.key_lanes])
            scores = jnp.where(is_visible, scores, MASKED)
            self.scratch.softmax.add(head, scores, keys[:, layout.value_start :])

        lax.fori_loop(0, layout.kv_heads, multiply, None, unroll=self.sizes.unroll)

    def store(self, out: Any, row: jax.Array) -> None:
        """Write the result to a row of [rows, heads, value_lanes]."""
        group = self.layout.group
        for head in range(self.layout.kv_heads):
            result = self.scratch.softmax.result(head)[:group]
            self.scratch.results[head * group : (head + 1) * group] = result
        out[row] = self.scratch.results[...].astype(out.dtype)


@dataclass(frozen=True)
class _Writer:
    """Puts new keys and values into the block that is read, and the changed tile into its page."""

    stream: Stream
    work: Work
    scratch: _Scratch
    layout: Layout

    def write(self, item: jax.Array, slot: jax.Array, num_live: jax.Array) -> None:
        """Make the last of `num_live` tokens in a buffer the new one."""
        tile, scratch = self.layout.tile, self.scratch
        offset = lax.rem(num_live - 1, tile)
        rows = pl.ds(pl.multiple_of(num_live - 1 - offset, tile), tile)
        turn = item & 1

        @pl.when(item >= _NUM_TILES)
        def _wait() -> None:
            self._copy(jnp.int32(0), jnp.int32(0), turn).wait()

        for head in range(self.layout.kv_heads):
            old = scratch.buffers.pages[slot, head, rows].astype(jnp.float32)
            is_new = lax.broadcasted_iota(jnp.int32, old.shape, 0) == offset
            new = jnp.where(is_new, scratch.row[head : head + 1], old)
            new = new.astype(self.layout.cache_dtype)
            scratch.tiles[turn, head] = new
            scratch.buffers.pages[slot, head, rows] = new
        position = self.work.lengths[item] - 1
        page = self.stream.page(item, position // self.layout.page_size)
        in_page = lax.rem(position, self.layout.page_size) - offset
        self._copy(page, in_page, turn).start()

    def finish(self) -> None:
        """Wait until all is written."""
        count = self.work.items.num_items[0]
        for nth in range(_NUM_TILES):

            @pl.when(count > nth)
            def _wait(nth: int = nth) -> None:
                self._copy(jnp.int32(0), jnp.int32(0), (count - 1 - nth) & 1).wait()

    def _copy(self, page: jax.Array, row: jax.Array, turn: jax.Array) -> Any:
        rows = pl.ds(pl.multiple_of(row, self.layout.tile), self.layout.tile)
        return pltpu.make_async_copy(
            self.scratch.tiles.at[turn],
            self.stream.cache.at[page, :, rows],
            self.scratch.tile_semaphores.at[turn],
        )
