"""Paged attention with several queries per sequence, for TPUs.

Queries are divided into blocks of consecutive rows of the batch, regardless of sequences. For each
sequence with rows in a block, the kernel reads the pages that these rows see. Rows of other
sequences are masked, so that their softmax does not change. For one sequence, this is
FlashAttention-2 (arXiv:2307.08691). The query heads of a KV head count as rows of the same product.
"""

from collections.abc import Callable
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
from pallas_kernels.paged_attention.tpu.layout import LANES, Layout, round_up
from pallas_kernels.paged_attention.tpu.softmax import MASKED, Scoring, Softmax, softmax
from pallas_kernels.paged_attention.tpu.stream import (
    Buffers,
    Items,
    Stream,
    buffers,
    stack_table,
)
from pallas_kernels.paged_attention.tpu.tuning import PrefillSizes


class Work(NamedTuple):
    """Scalars of a prefill: an item is a sequence with rows in a block of queries.

    An item has the rows [begins, ends) of the batch, at positions row + shifts. Block i of queries
    has the items [starts[i], starts[i + 1]).
    """

    items: Items
    begins: Int32[Array, " items"]
    ends: Int32[Array, " items"]
    shifts: Int32[Array, " items"]
    starts: Int32[Array, " blocks_and_end"]


def plan(
    batch: PagedBatch,
    is_prefill: Bool[Array, " sequences"],
    *,
    num_tokens: int,
    page_size: int,
    scoring: Scoring,
    rows: int,
) -> Work:
    """Return the work for the sequences selected by `is_prefill`, in blocks of `rows`."""
    row_starts, row_ends = batch.query_starts[:-1], batch.query_starts[1:]
    first_blocks = row_starts // rows
    counts = jnp.where(is_prefill, (row_ends - 1) // rows + 1 - first_blocks, 0)
    item_ends = jnp.cumsum(counts)
    num_sequences, num_blocks = counts.shape[0], -(-num_tokens // rows)
    # Every sequence is one item, and one more for each block boundary that it crosses.
    capacity = num_blocks + min(num_sequences, num_tokens // 2)
    items = jnp.arange(capacity, dtype=jnp.int32)
    sequences = jnp.sum(item_ends[None, :] <= items[:, None], axis=1, dtype=jnp.int32)
    sequences = jnp.minimum(sequences, num_sequences - 1)
    blocks = (first_blocks - item_ends + counts)[sequences] + items
    begins = jnp.maximum(row_starts[sequences], blocks * rows)
    ends = jnp.minimum(row_ends[sequences], (blocks + 1) * rows)
    shifts = (batch.kv_lengths - row_ends)[sequences]
    first_pages = scoring.first_visible(begins + shifts) // page_size
    is_before = (items < item_ends[-1]) & (blocks < jnp.arange(num_blocks + 1)[:, None])
    return Work(
        items=Items(
            num_items=item_ends[-1:],
            sequences=sequences,
            first_pages=first_pages,
            num_pages=-(-(ends + shifts) // page_size) - first_pages,
        ),
        begins=begins,
        ends=ends,
        shifts=shifts,
        starts=jnp.sum(is_before, axis=1, dtype=jnp.int32),
    )


def prefill(
    q: Float[Array, "tokens heads key_lanes"],
    cache: Shaped[Array, "pages kv_heads page_size lanes"],
    sinks: Float[Array, " heads"] | None,
    batch: PagedBatch,
    is_prefill: Bool[Array, " sequences"],
    *,
    layout: Layout,
    scoring: Scoring,
    sizes: PrefillSizes,
    options: dict[str, Any],
) -> Float[Array, "tokens heads value_lanes"]:
    """Attend with the rows of the sequences selected by `is_prefill`; other rows are zeros.

    Their keys and values must be in the cache already.
    """
    num_tokens, num_heads, _ = q.shape
    work = plan(
        batch,
        is_prefill,
        num_tokens=num_tokens,
        page_size=layout.page_size,
        scoring=scoring,
        rows=sizes.rows,
    )
    table = stack_table(batch.page_table)
    num_rows = round_up(num_tokens, sizes.rows)
    by_head = jnp.pad(q.transpose(1, 0, 2), ((0, 0), (0, num_rows - num_tokens), (0, 0)))

    def rows_of(lanes: int) -> pl.BlockSpec:
        return pl.BlockSpec((num_heads, sizes.rows, lanes), lambda block, _: (0, block, 0))

    if sinks is not None:
        sinks = jnp.broadcast_to(sinks[:, None, None], (num_heads, 1, LANES))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    specs = _Inputs(
        cache=anywhere,
        table=anywhere,
        q=rows_of(layout.key_lanes),
        sinks=None if sinks is None else pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)),
    )
    out = pl.pallas_call(
        partial(_kernel, layout=layout, scoring=scoring, sizes=sizes),
        out_shape=jax.ShapeDtypeStruct((num_heads, num_rows, layout.value_lanes), q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(num_rows // sizes.rows,),
            in_specs=[specs],
            out_specs=rows_of(layout.value_lanes),
            scratch_shapes=[
                _Scratch(
                    buffers=buffers(layout, sizes.stream, table_rows=table.shape[1]),
                    softmax=softmax(
                        num_heads // sizes.heads, sizes.heads * sizes.rows, layout.value_lanes
                    ),
                )
            ],
        ),
        name="paged_attention_prefill",
        **options,
    )(work, _Inputs(cache, table, by_head, sinks))
    by_row: jax.Array = out[:, :num_tokens].transpose(1, 0, 2)
    return by_row


class _Inputs(NamedTuple):
    cache: Any
    table: Any
    q: Any
    sinks: Any


class _Scratch(NamedTuple):
    buffers: Buffers
    softmax: Softmax


def _kernel(
    work: Work,
    inputs: _Inputs,
    out: Any,
    scratch: _Scratch,
    *,
    layout: Layout,
    scoring: Scoring,
    sizes: PrefillSizes,
) -> None:
    """Attend with one block of queries."""
    row_block, rows = pl.program_id(0), sizes.rows
    stream = Stream(work.items, inputs.table, inputs.cache, scratch.buffers, layout, sizes.stream)
    products = _Products(inputs, scratch, layout, scoring, sizes)

    def attend(item: jax.Array, carry: None) -> None:
        del carry
        first_row = row_block * rows

        def is_ours(row: jax.Array) -> jax.Array:
            return (row >= work.begins[item]) & (row < work.ends[item])

        row = first_row + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        # Rows of other sequences see nothing.
        positions = jnp.where(is_ours(row), row + work.shifts[item], -1)
        whole_rows = lax.broadcasted_iota(jnp.int32, (rows, layout.value_lanes), 0)

        def visit(slot: jax.Array, offset: jax.Array, position: jax.Array) -> None:
            chunk = (1, sizes.stream.chunk)
            key_positions = position + lax.broadcasted_iota(jnp.int32, chunk, 1)
            is_visible = key_positions <= positions
            if scoring.sliding_window is not None:
                is_visible &= key_positions > positions - scoring.sliding_window
            products.add(slot, offset, is_visible, is_ours(first_row + whole_rows))

        # An item sees no keys after its last row.
        stream.for_each_chunk(item, work.ends[item] + work.shifts[item], visit)

    products.begin()
    lax.fori_loop(work.starts[row_block], work.starts[row_block + 1], attend, None)
    products.store(out)


@dataclass(frozen=True)
class _Products:
    """Products of a block of queries: each for all rows and some query heads of one KV head."""

    inputs: _Inputs
    scratch: _Scratch
    layout: Layout
    scoring: Scoring
    sizes: PrefillSizes

    def begin(self) -> None:
        """Reset the softmax of all products."""
        heads, rows = self.sizes.heads, self.sizes.rows

        def begin(nth: jax.Array, carry: None) -> None:
            del carry
            sinks = None
            if self.inputs.sinks is not None:
                of_heads = self.inputs.sinks[pl.ds(nth * heads, heads)]
                sinks = jnp.broadcast_to(of_heads, (heads, rows, LANES)).reshape(-1, LANES)
            self.scratch.softmax.begin(nth, sinks)

        self._each(begin)

    def add(
        self, slot: jax.Array, offset: jax.Array, is_visible: jax.Array, is_ours: jax.Array
    ) -> None:
        """Attend to a chunk of the pages in buffer `slot`.

        is_visible: bool[rows, chunk]. is_ours: bool[rows, value_lanes], whether a row belongs to
        the sequence of the pages.
        """
        layout, heads, chunk = self.layout, self.sizes.heads, self.sizes.stream.chunk

        def multiply(nth: jax.Array, carry: None) -> None:
            del carry
            kv_head = nth // (layout.group // heads)
            keys = self.scratch.buffers.pages[slot, kv_head, pl.ds(offset, chunk)]
            keys = keys.astype(layout.dtype)
            queries = self.inputs.q[pl.ds(nth * heads, heads)].reshape(-1, layout.key_lanes)
            scores = self.scoring.score(queries, keys[:, : layout.key_lanes])
            scores = jnp.where(is_visible, scores.reshape(heads, -1, chunk), MASKED)
            values = keys[:, layout.value_start : layout.value_end]
            self.scratch.softmax.add(nth, scores.reshape(-1, chunk), values, is_ours=is_ours)

        self._each(multiply)

    def store(self, out: Any) -> None:
        """Write the results to `out`, [heads, rows, value_lanes]."""
        heads = self.sizes.heads

        def store(nth: jax.Array, carry: None) -> None:
            del carry
            result = self.scratch.softmax.result(nth)
            result = result.reshape(heads, -1, self.layout.value_lanes)
            out[pl.ds(nth * heads, heads)] = result.astype(out.dtype)

        self._each(store)

    def _each(self, act: Callable[[jax.Array, None], None]) -> None:
        lax.fori_loop(0, self.layout.heads // self.sizes.heads, act, None)
