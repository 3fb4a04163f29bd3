"""Paged attention with one query per sequence, for TPUs.

A sequence's pages stream through the vector memory (see stream.py), so every live byte of the cache
is read once. The new key and value are inserted into the last block there, and the tile that
contains them is copied back to its page. So the same kernel writes the cache in place. Results are
copied to their rows one by one, which leaves the rows of a prefill between them unchanged.

Paging follows PagedAttention (Kwon et al. 2023, arXiv:2309.06180). Separate kernels for decode and
prefill, the fused write and the prefetch across sequences follow Ragged Paged Attention
(arXiv:2604.15464).
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
from pallas_kernels.paged_attention.tpu.layout import LANES, Layout
from pallas_kernels.paged_attention.tpu.softmax import MASKED, Scoring, Softmax, softmax
from pallas_kernels.paged_attention.tpu.stream import (
    Buffers,
    Items,
    Stream,
    buffers,
    stack_table,
)
from pallas_kernels.paged_attention.tpu.tuning import DecodeSizes

# Sequences whose tiles and results are being copied out at a time.
_NUM_TURNS = 2


class Work(NamedTuple):
    """Scalars of a decode: items, and the visits of blocks of sequences.

    rows: row of each item in the batch. Visit i processes the items [starts[i], starts[i + 1]),
    which are in block `blocks[i]` of the sequences.
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
    block: int,
) -> tuple[Work, Int32[Array, ""]]:
    """Return the work for the sequences selected by `is_decode`, and the number of visits.

    A visit processes one block of `block` sequences.
    """
    count = jnp.sum(is_decode, dtype=jnp.int32)
    sequences = jnp.argsort(jnp.logical_not(is_decode), stable=True).astype(jnp.int32)
    indices = jnp.arange(sequences.shape[0], dtype=jnp.int32)
    lengths = batch.kv_lengths[sequences]
    first_pages = scoring.first_visible(lengths - 1) // page_size
    blocks = sequences // block
    is_first = (indices < count) & ((indices == 0) | (blocks != jnp.roll(blocks, 1)))
    starts = jnp.sort(jnp.where(is_first, indices, count))
    work = Work(
        items=Items(
            num_items=count[None],
            sequences=sequences,
            first_pages=first_pages,
            num_pages=-(-lengths // page_size) - first_pages,
        ),
        rows=batch.query_starts[sequences],
        lengths=lengths,
        blocks=blocks.at[starts].get(mode="clip"),
        starts=jnp.concatenate((starts, count[None])),
    )
    # At least one visit, so that the loop over visits is never empty.
    return work, jnp.maximum(jnp.sum(is_first, dtype=jnp.int32), 1)


def decode(
    q: Float[Array, "sequences heads key_lanes"],
    new: Shaped[Array, "sequences kv_heads lanes"],
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
    """Attend with the sequences selected by `is_decode`, and write their `new` rows to the cache.

    Returns the results, by row of the batch, and the cache. The other rows come from `previous`,
    which is overwritten. Without `previous`, they are unspecified, and there is one row per
    sequence.
    """
    work, num_visits = plan(
        batch,
        is_decode,
        page_size=layout.page_size,
        scoring=scoring,
        block=sizes.sequences,
    )
    table = stack_table(batch.page_table)
    if sinks is not None:
        by_group = sinks.reshape(layout.kv_heads, layout.group)
        by_group = jnp.pad(by_group, ((0, 0), (0, layout.group_rows - layout.group)))
        sinks = jnp.broadcast_to(by_group[:, :, None], (*by_group.shape, LANES))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)

    def rows_of(heads: int, lanes: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (sizes.sequences, heads, lanes), lambda visit, work: (work.blocks[visit], 0, 0)
        )

    specs = _Inputs(
        cache=anywhere,
        previous=None if previous is None else anywhere,
        table=anywhere,
        q=rows_of(layout.heads, layout.key_lanes),
        new=rows_of(layout.kv_heads, layout.lanes),
        sinks=None if sinks is None else pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)),
    )
    # Operand indices start with the scalars.
    num_scalars = len(jax.tree.leaves(work))
    aliases = {num_scalars: 1} if previous is None else {num_scalars: 1, num_scalars + 1: 0}
    num_rows = q.shape[0] if previous is None else previous.shape[0]
    result: tuple[jax.Array, jax.Array] = pl.pallas_call(
        partial(_kernel, layout=layout, scoring=scoring, sizes=sizes),
        out_shape=(
            jax.ShapeDtypeStruct((num_rows, layout.heads, layout.value_lanes), q.dtype),
            jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(num_visits,),
            in_specs=[specs],
            out_specs=(anywhere, anywhere),
            scratch_shapes=[_scratch(layout, sizes, table_rows=table.shape[1])],
        ),
        input_output_aliases=aliases,
        name="paged_attention_decode",
        **options,
    )(work, _Inputs(cache, previous, table, q, new, sinks))
    return result


class _Inputs(NamedTuple):
    cache: Any
    previous: Any
    table: Any
    q: Any
    new: Any
    sinks: Any


class _Scratch(NamedTuple):
    buffers: Buffers
    softmax: Softmax
    queries: Any  # float32[kv_heads, group_rows, key_lanes]
    result: Any  # float32[heads, value_lanes]
    new: Any  # float32[kv_heads, lanes]
    results: Any  # dtype[2, heads, value_lanes]: to be copied out
    tiles: Any  # cache_dtype[2, kv_heads, tile, lanes]: likewise, to the cache
    semaphores: Any  # [2]: of both


def _scratch(layout: Layout, sizes: DecodeSizes, *, table_rows: int) -> _Scratch:
    kv_heads, rows = layout.kv_heads, layout.group_rows
    result = (layout.heads, layout.value_lanes)
    tiles = (_NUM_TURNS, kv_heads, layout.tile, layout.lanes)
    return _Scratch(
        buffers=buffers(layout, sizes.stream, table_rows=table_rows),
        softmax=softmax(kv_heads, rows, layout.value_lanes),
        queries=pltpu.VMEM((kv_heads, rows, layout.key_lanes), jnp.float32),
        result=pltpu.VMEM(result, jnp.float32),
        new=pltpu.VMEM((kv_heads, layout.lanes), jnp.float32),
        results=pltpu.VMEM((_NUM_TURNS, *result), layout.dtype),
        tiles=pltpu.VMEM(tiles, layout.cache_dtype),
        semaphores=pltpu.SemaphoreType.DMA((_NUM_TURNS,)),
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
    """Attend with the items of one block of sequences. `cache` aliases inputs.cache for writing."""
    visit = pl.program_id(0)
    stream = Stream(work.items, inputs.table, cache, scratch.buffers, layout, sizes.stream)
    query = _Query(inputs, scratch, layout, scoring, sizes)
    writer = _Writer(stream, work, out, scratch, layout)

    def attend(item: jax.Array, carry: None) -> None:
        del carry
        length = work.lengths[item]
        query.begin(lax.rem(work.items.sequences[item], sizes.sequences))
        writer.begin(item)
        stream.for_each_chunk(
            item,
            length,
            partial(query.add, length=length),
            at_end=partial(writer.put_new, item),
        )
        query.end()
        writer.copy_out(item)

    lax.fori_loop(work.starts[visit], work.starts[visit + 1], attend, None)

    @pl.when(work.starts[visit + 1] == work.items.num_items[0])
    def _end() -> None:
        writer.end()


@dataclass(frozen=True)
class _Query:
    """Query of a sequence: all heads, with separate tiles for each KV head."""

    inputs: _Inputs
    scratch: _Scratch
    layout: Layout
    scoring: Scoring
    sizes: DecodeSizes

    def begin(self, row: jax.Array) -> None:
        """Load a row of the block of queries and of new keys and values; reset the softmax."""
        group, sinks = self.layout.group, self.inputs.sinks
        self.scratch.new[...] = self.inputs.new[row].astype(jnp.float32)
        queries = self.inputs.q[row].astype(jnp.float32)
        for head in range(self.layout.kv_heads):
            self.scratch.queries[head, :group] = queries[head * group : (head + 1) * group]
            self.scratch.softmax.begin(head, None if sinks is None else sinks[head])

    def add(
        self, slot: jax.Array, offset: jax.Array, position: jax.Array, *, length: jax.Array
    ) -> None:
        """Attend to a chunk of buffer `slot`, at positions [position, length)."""
        layout, chunk = self.layout, self.sizes.stream.chunk
        shape = (layout.group_rows, chunk)
        positions = position + lax.broadcasted_iota(jnp.int32, shape, 1)
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
            self.scratch.softmax.add(head, scores, keys[:, layout.value_start : layout.value_end])

        lax.fori_loop(0, layout.kv_heads, multiply, None, unroll=self.sizes.unroll)

    def end(self) -> None:
        """Combine the results of all heads."""
        group = self.layout.group
        for head in range(self.layout.kv_heads):
            result = self.scratch.softmax.result(head)[:group]
            self.scratch.result[head * group : (head + 1) * group] = result


@dataclass(frozen=True)
class _Writer:
    """Copies results to their rows, and tiles with new keys and values to their pages.

    The copies are double-buffered: items alternate between two buffers in the vector memory.
    """

    stream: Stream
    work: Work
    out: Any
    scratch: _Scratch
    layout: Layout

    def begin(self, item: jax.Array) -> None:
        """Wait until an earlier item's copies from this item's buffer are done."""

        @pl.when(item >= _NUM_TURNS)
        def _wait() -> None:
            self._wait(item - _NUM_TURNS)

    def put_new(self, item: jax.Array, slot: jax.Array, num_live: jax.Array) -> None:
        """Insert the new token as the last of `num_live` in a buffer, and copy its tile out."""
        tile, scratch = self.layout.tile, self.scratch
        offset = lax.rem(num_live - 1, tile)
        rows = pl.ds(pl.multiple_of(num_live - 1 - offset, tile), tile)
        turn = lax.rem(item, _NUM_TURNS)
        for head in range(self.layout.kv_heads):
            old = scratch.buffers.pages[slot, head, rows].astype(jnp.float32)
            is_new = lax.broadcasted_iota(jnp.int32, old.shape, 0) == offset
            new = jnp.where(is_new, scratch.new[head : head + 1], old)
            new = new.astype(self.layout.cache_dtype)
            scratch.tiles[turn, head] = new
            scratch.buffers.pages[slot, head, rows] = new
        position = self.work.lengths[item] - 1
        page = self.stream.page(item, position // self.layout.page_size)
        self._tile_copy(item, page, lax.rem(position, self.layout.page_size) - offset).start()

    def copy_out(self, item: jax.Array) -> None:
        """Copy the result to its row."""
        turn = lax.rem(item, _NUM_TURNS)
        self.scratch.results[turn] = self.scratch.result[...].astype(self.layout.dtype)
        self._result_copy(item).start()

    def end(self) -> None:
        """Wait until everything is written."""
        num_items = self.work.items.num_items[0]
        for behind in range(1, _NUM_TURNS + 1):

            @pl.when(num_items >= behind)
            def _wait(behind: int = behind) -> None:
                self._wait(num_items - behind)

    def _wait(self, item: jax.Array) -> None:
        # Waiting depends on the size of a copy only, so any destination will do.
        self._tile_copy(item, jnp.int32(0), jnp.int32(0)).wait()
        self._result_copy(item).wait()

    def _tile_copy(self, item: jax.Array, page: jax.Array, offset: jax.Array) -> Any:
        turn, tile = lax.rem(item, _NUM_TURNS), self.layout.tile
        rows = pl.ds(pl.multiple_of(offset, tile), tile)
        return pltpu.make_async_copy(
            self.scratch.tiles.at[turn],
            self.stream.cache.at[page, :, rows],
            self.scratch.semaphores.at[turn],
        )

    def _result_copy(self, item: jax.Array) -> Any:
        turn = lax.rem(item, _NUM_TURNS)
        return pltpu.make_async_copy(
            self.scratch.results.at[turn],
            self.out.at[self.work.rows[item]],
            self.scratch.semaphores.at[turn],
        )
