"""Paged attention in plain jnp: the definition of correct, and the path on CPUs.

Queries are cut into blocks of one sequence each. A group of blocks walks over its pages together,
a chunk of pages at a time, with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867).
How many groups there are, and how many chunks a group needs, is read from the batch at run time:
a step costs what its sequences cost, and not what its shape and the page table could hold.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.targets import Target

# Rows per block when sequences may have many, blocks per group, and tokens per chunk of pages. On
# a 2-core CPU with 8 heads of 64 over 4 KV heads, 64 tokens were the best of 64 to 512: as fast as
# 128 at 256 tokens of context, 1.7 times faster at 64, and 2 to 8 times faster than attending over
# the whole table. Groups of 8 blocks cost nothing when all blocks are real, and save the rest.
QUERY_BLOCK = 16
BLOCK_GROUP = 8
CHUNK_TOKENS = 64

# A position that no sequence reaches.
_NEVER = 2**31 - 1

# Below every score, but finite: the difference of two of them is 0 and not NaN.
MASKED = -1e30


def check(config: AttentionConfig, target: Target) -> None:
    """See api.Backend: there is nothing that plain jnp cannot do."""


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """[key/value, pages, kv_heads, page_size, head_dim]: a head's page is one contiguous tile."""
    return CacheSpec(
        shape=(2, num_pages, config.kv_heads, config.page_size, config.head_dim),
        dtype=jnp.dtype(config.cache_dtype),
        axes=("planes", "pages", "kv_heads", "offsets", "head_dim"),
    )


def empty_cache(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """See api.Backend."""
    return jnp.zeros(spec.shape, spec.dtype)


def workspace_bytes(
    config: AttentionConfig,
    target: Target,
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
) -> int:
    """See api.Backend."""
    del target
    heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
    num_blocks, num_rows, results = BLOCK_GROUP, 1, 0
    if max_query_length > 1:
        num_rows = QUERY_BLOCK
        num_results = (_num_groups(num_tokens, num_sequences) * BLOCK_GROUP) * QUERY_BLOCK
        results = 2 * num_results * heads * head_dim
    # Keys and values of a chunk, as gathered and as multiplied.
    chunk = 4 * num_blocks * CHUNK_TOKENS * kv_heads * head_dim
    # Scores and their exponentials; queries, the sum so far and what a chunk adds to it.
    per_row = 2 * CHUNK_TOKENS + 3 * head_dim
    floats = num_blocks * num_rows * heads * per_row * 4
    return (chunk + results) * jnp.dtype(config.dtype).itemsize + floats


@dataclass(frozen=True)
class _Scores:
    """How products of queries and keys become weights."""

    scale: float
    soft_cap: float | None
    sliding_window: int | None
    sinks: jax.Array | None  # float32[heads]


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads head_dim"], jax.Array]:
    """See api.Backend."""
    del target
    how = _Scores(spec.scale, config.soft_cap, config.sliding_window, spec.sinks)
    batch = batch.confined(
        num_tokens=q.shape[0], num_pages=cache.shape[1], page_size=config.page_size
    )
    cache = write(cache, k, v, batch)
    with jax.named_scope("paged_attention"):
        if batch.max_query_length == 1:
            return _attend_single(q, cache, batch, how, rows=jnp.arange(q.shape[0])), cache
        return _attend_ragged(q, cache, batch, how), cache


@jax.named_scope("kv_write")
def write(
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    k: Shaped[Array, "tokens kv_heads head_dim"],
    v: Shaped[Array, "tokens kv_heads head_dim"],
    batch: PagedBatch,
) -> jax.Array:
    """Scatter the rows' keys and values to their pages, padding rows to page 0.

    The batch is confined; rows whose position or sequence the page table does not have are padding.
    """
    page_size = cache.shape[3]
    num_sequences, width = batch.page_table.shape
    pages = batch.page_table[batch.row_sequences, batch.positions // page_size]
    is_real = jnp.arange(k.shape[0]) < batch.query_starts[-1]
    is_real &= (batch.positions >= 0) & (batch.positions < width * page_size)
    is_real &= (batch.row_sequences >= 0) & (batch.row_sequences < num_sequences)
    pages = jnp.where(is_real, pages, 0)
    offsets = batch.positions % page_size
    for plane, rows in enumerate((k, v)):
        cache = cache.at[plane, pages, :, offsets].set(rows, mode="promise_in_bounds")
    return cache


def _attend_single(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    how: _Scores,
    *,
    rows: Int32[Array, " sequences"],
) -> Float[Array, "sequences heads head_dim"]:
    """Attend with the sequences that have one row, those of like length together.

    rows: where it is. The results of other sequences are zeros. A group takes as long as its
    longest: in the order of the batch, one long context would cost its neighbours as much
    (measured: 1.6 times the time at lengths as of chats).
    """
    num_sequences = batch.kv_lengths.shape[0]
    group = min(BLOCK_GROUP, num_sequences)
    num_groups = -(-num_sequences // group)
    is_single = batch.query_starts[1:] - batch.query_starts[:-1] == 1
    lengths = jnp.where(is_single, batch.kv_lengths, 0)
    order = jnp.argsort(-lengths)
    padded = jnp.pad(order, (0, num_groups * group - num_sequences))

    def attend_group(index: jax.Array, out: jax.Array) -> jax.Array:
        sequences = lax.dynamic_slice_in_dim(padded, index * group, group)
        queries = q.at[rows[sequences]].get(mode="clip")[:, None]
        counts = is_single[sequences].astype(jnp.int32)
        positions = batch.kv_lengths[sequences] - 1
        result = _attend_blocks(queries, cache, batch, sequences, positions, counts, how)
        return lax.dynamic_update_slice_in_dim(out, result[:, 0], index * group, axis=0)

    # Overwritten as far as it is read. Zeros would depend on nothing, and XLA would make those of
    # every layer at the start of a step and keep them all.
    unwritten = jnp.broadcast_to(q[:1], (num_groups * group, *q.shape[1:]))
    num_real = (jnp.sum(is_single) + group - 1) // group
    out = lax.fori_loop(0, num_real, attend_group, unwritten)
    return jnp.where(is_single[:, None, None], out[jnp.argsort(order)], 0)


def _attend_ragged(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    how: _Scores,
) -> Float[Array, "tokens heads head_dim"]:
    """Cut the rows of each sequence into blocks, attend, and put the rows back in order.

    Not so the sequences of one row: a block of theirs would be padding but for that.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_sequences = batch.kv_lengths.shape[0]
    row_counts = batch.query_starts[1:] - batch.query_starts[:-1]
    is_single = row_counts == 1
    block_counts = jnp.where(is_single, 0, -(-row_counts // QUERY_BLOCK))
    block_ends = jnp.cumsum(block_counts)

    def attend_group(group: jax.Array, out: jax.Array) -> jax.Array:
        blocks = group * BLOCK_GROUP + jnp.arange(BLOCK_GROUP)
        sequences = jnp.sum(block_ends[None, :] <= blocks[:, None], axis=1)
        sequences = jnp.minimum(sequences, num_sequences - 1)
        nth = blocks - (block_ends - block_counts)[sequences]  # which block of its sequence
        first_rows = batch.query_starts[sequences] + nth * QUERY_BLOCK
        # Blocks past the last real one fall behind their sequence's rows: count 0.
        counts = jnp.clip(batch.query_starts[sequences + 1] - first_rows, 0, QUERY_BLOCK)
        counts = jnp.where(blocks < block_ends[-1], counts, 0)
        rows = first_rows[:, None] + jnp.arange(QUERY_BLOCK)
        first_positions = (batch.kv_lengths - batch.query_starts[1:])[sequences] + first_rows
        result = _attend_blocks(
            q.at[rows].get(mode="clip"),
            cache,
            batch,
            sequences,
            first_positions,
            counts,
            how,
        )
        return lax.dynamic_update_slice_in_dim(out, result, group * BLOCK_GROUP, axis=0)

    num_blocks = _num_groups(num_tokens, num_sequences) * BLOCK_GROUP
    num_padding = num_blocks * QUERY_BLOCK - num_tokens
    unwritten = jnp.pad(q, ((0, num_padding), (0, 0), (0, 0)))  # see _attend_single
    out = lax.fori_loop(
        0,
        -(-block_ends[-1] // BLOCK_GROUP),
        attend_group,
        unwritten.reshape(num_blocks, QUERY_BLOCK, num_heads, head_dim),
    )
    # The block and the place in it of every row.
    row_indices = jnp.arange(num_tokens) - batch.query_starts[batch.row_sequences]
    first_blocks = (block_ends - block_counts)[batch.row_sequences]
    gathered = out.at[first_blocks + row_indices // QUERY_BLOCK, row_indices % QUERY_BLOCK].get(
        mode="clip"
    )
    single = _attend_single(q, cache, batch, how, rows=batch.query_starts[:-1])
    is_single_row = is_single[batch.row_sequences][:, None, None]
    gathered = jnp.where(is_single_row, single[batch.row_sequences], gathered)
    is_real = jnp.arange(num_tokens) < batch.query_starts[-1]
    return jnp.where(is_real[:, None, None], gathered, 0)


def _num_groups(num_tokens: int, num_sequences: int) -> int:
    """Groups that rows can take at most: a sequence of n has ceil(n / QUERY_BLOCK) blocks."""
    num_blocks = num_tokens // QUERY_BLOCK + num_sequences
    return -(-num_blocks // BLOCK_GROUP)


def _attend_blocks(
    q: Float[Array, "blocks rows heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    sequences: Int32[Array, " blocks"],
    first_positions: Int32[Array, " blocks"],
    counts: Int32[Array, " blocks"],
    how: _Scores,
) -> Float[Array, "blocks rows heads head_dim"]:
    """Attend with blocks of `counts` rows at consecutive positions; the other rows are zeros."""
    num_blocks, num_rows, num_heads, head_dim = q.shape
    kv_heads, page_size = cache.shape[2], cache.shape[3]
    group = num_heads // kv_heads
    chunk_pages = max(1, CHUNK_TOKENS // page_size)
    chunk = chunk_pages * page_size
    width = -(-batch.page_table.shape[1] // chunk_pages) * chunk_pages
    page_table = jnp.pad(batch.page_table, ((0, 0), (0, width - batch.page_table.shape[1])))
    page_table = page_table[sequences]

    # [blocks, kv_heads, group * rows, head_dim]: the query heads of a KV head are more rows.
    folded = q.reshape(num_blocks, num_rows, kv_heads, group, head_dim)
    folded = folded.transpose(0, 2, 3, 1, 4).reshape(num_blocks, kv_heads, -1, head_dim)
    positions = first_positions[:, None] + jnp.arange(num_rows)
    positions = jnp.where(jnp.arange(num_rows) < counts[:, None], positions, -1)
    positions = jnp.tile(positions, (1, group))[:, None, :, None]
    lengths = jnp.where(counts > 0, first_positions + counts, 0)  # keys a block may see

    def attend_chunk(
        index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        maximum, total, out = carry
        pages = lax.dynamic_slice_in_dim(page_table, index * chunk_pages, chunk_pages, axis=1)
        key_positions = index * chunk + jnp.arange(chunk)
        keys = _gather(cache[0], pages).astype(q.dtype)
        values = _gather(cache[1], pages).astype(q.dtype)
        # Garbage in a page must not reach the sum: 0 * NaN is NaN.
        is_written = key_positions < lengths[:, None]
        values = jnp.where(is_written[:, None, :, None], values, 0)
        scores = how.scale * jnp.einsum(
            "bhrk,bhck->bhrc", folded, keys, preferred_element_type=jnp.float32
        )
        if how.soft_cap is not None:
            scores = how.soft_cap * jnp.tanh(scores / how.soft_cap)
        is_visible = key_positions <= positions
        if how.sliding_window is not None:
            is_visible &= key_positions > positions - how.sliding_window
        scores = jnp.where(is_visible, scores, MASKED)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
        weights = jnp.where(is_visible, jnp.exp(scores - new_maximum[..., None]), 0.0)
        decay = jnp.exp(maximum - new_maximum)
        total = total * decay + jnp.sum(weights, axis=-1)
        partial = jnp.einsum(
            "bhrc,bhck->bhrk",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        return new_maximum, total, out * decay[..., None] + partial

    first_chunk = jnp.zeros((), jnp.int32)
    if how.sliding_window is not None:
        earliest = jnp.where(counts > 0, first_positions, _NEVER)
        first_chunk = jnp.maximum(jnp.min(earliest) - how.sliding_window + 1, 0) // chunk
    last_chunk = (jnp.max(lengths) + chunk - 1) // chunk
    shape = folded.shape[:3]
    maximum, total = jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    if how.sinks is not None:
        # A sink is a key that was seen before all others, and whose value is 0.
        per_row = jnp.repeat(how.sinks.reshape(kv_heads, group), num_rows, axis=1)
        maximum, total = jnp.broadcast_to(per_row, shape), jnp.ones(shape, jnp.float32)
    _, total, out = lax.fori_loop(
        first_chunk,
        last_chunk,
        attend_chunk,
        (maximum, total, jnp.zeros((*shape, head_dim), jnp.float32)),
    )
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    out = out.reshape(num_blocks, kv_heads, group, num_rows, head_dim)
    unfolded: jax.Array = out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)
    return unfolded


def _gather(
    plane: Shaped[Array, "pages kv_heads page_size head_dim"],
    pages: Int32[Array, "blocks chunk_pages"],
) -> Shaped[Array, "blocks kv_heads chunk head_dim"]:
    """Collect pages, head by head: in the order in which the products read them.

    Left to itself, XLA would gather keys with head_dim before the tokens, which costs a CPU a
    quarter of the whole op.
    """
    found = plane.at[pages].get(mode="promise_in_bounds").transpose(0, 2, 1, 3, 4)
    merged: jax.Array = found.reshape(*found.shape[:2], -1, found.shape[-1])
    return merged
