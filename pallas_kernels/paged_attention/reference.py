"""Reference implementation of paged attention in plain jnp, for every platform.

Queries are divided into blocks of rows of one sequence. A group of blocks is processed together,
one chunk of pages at a time, with an online softmax (Milakov and Gimelshein 2018,
arXiv:1805.02867). The numbers of groups and chunks are read from the batch at run time, so the cost
of a step depends on its sequences and not on the sizes of its arrays.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.targets import Target

# Rows per block of a ragged step, blocks per group, and tokens per chunk of pages. On a 2-core CPU
# with 8 heads of 64 and 4 KV heads, chunks of 64 tokens were the fastest of 64 to 512: equal to 128
# at 256 tokens of context, 1.7 times faster at 64, and 2 to 8 times faster than attending over the
# whole page table. Groups of 8 blocks cost nothing if all blocks are used; otherwise they save the
# work of empty groups.
QUERY_BLOCK = 16
BLOCK_GROUP = 8
CHUNK_TOKENS = 64

# Larger than any position.
_NEVER = 2**31 - 1

# Below every score, but finite, so that MASKED - MASKED is 0 and not NaN.
MASKED = -1e30


def check(config: AttentionConfig, target: Target) -> None:
    """Accept every case; see api.Backend."""


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """Return [key/value, pages, kv_heads, page_size, head_dim]: pages of a head are contiguous."""
    return CacheSpec(
        shape=(config.num_planes, num_pages, config.kv_heads, config.page_size, config.head_dim),
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
        results = 2 * num_results * heads * config.result_dim
    # Keys and values of a chunk, as gathered and as multiplied.
    chunk = 2 * num_blocks * CHUNK_TOKENS * kv_heads * (head_dim + config.result_dim)
    # Scores and their exponentials; queries, the accumulator and the product of a chunk.
    per_row = 2 * CHUNK_TOKENS + head_dim + 2 * config.result_dim
    floats = num_blocks * num_rows * heads * per_row * 4
    return (chunk + results) * jnp.dtype(config.dtype).itemsize + floats


@dataclass(frozen=True)
class _Scoring:
    """Conversion of products of queries and keys to softmax weights."""

    scale: float
    soft_cap: float | None
    sliding_window: int | None
    sinks: jax.Array | None  # float32[heads]
    value_dim: int


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"] | None,
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads result_dim"], jax.Array]:
    """See api.Backend."""
    del target
    scoring = _Scoring(
        spec.scale, config.soft_cap, config.sliding_window, spec.sinks, config.result_dim
    )
    batch = batch.confined(
        num_tokens=q.shape[0], num_pages=cache.shape[1], page_size=config.page_size
    )
    cache = write(cache, k, v, batch)
    with jax.named_scope("paged_attention"):
        if batch.max_query_length == 1:
            return _attend_single(q, cache, batch, scoring, rows=jnp.arange(q.shape[0])), cache
        return _attend_ragged(q, cache, batch, scoring), cache


@jax.named_scope("kv_write")
def write(
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    k: Shaped[Array, "tokens kv_heads head_dim"],
    v: Shaped[Array, "tokens kv_heads head_dim"] | None,
    batch: PagedBatch,
) -> jax.Array:
    """Scatter the rows' keys and values to their pages, and padding rows to page 0.

    The batch must be confined. Rows whose position or sequence is outside of the page table are
    padding.
    """
    page_size = cache.shape[3]
    num_sequences, width = batch.page_table.shape
    pages = batch.page_table[batch.row_sequences, batch.positions // page_size]
    is_real = jnp.arange(k.shape[0]) < batch.query_starts[-1]
    is_real &= (batch.positions >= 0) & (batch.positions < width * page_size)
    is_real &= (batch.row_sequences >= 0) & (batch.row_sequences < num_sequences)
    pages = jnp.where(is_real, pages, 0)
    offsets = batch.positions % page_size
    for plane, rows in enumerate((k,) if v is None else (k, v)):
        cache = cache.at[plane, pages, :, offsets].set(rows, mode="promise_in_bounds")
    return cache


def _attend_single(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    scoring: _Scoring,
    *,
    rows: Int32[Array, " sequences"],
) -> Float[Array, "sequences heads result_dim"]:
    """Attend with the sequences that have one row, grouped by similar length.

    rows: row of each sequence. The results of other sequences are zeros. A group takes as long as
    its longest sequence: in batch order, one long context would slow down its whole group (measured
    with lengths of chats: 1.6 times the time).
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
        result = _attend_blocks(queries, cache, batch, sequences, positions, counts, scoring)
        return lax.dynamic_update_slice_in_dim(out, result[:, 0], index * group, axis=0)

    # Overwritten wherever it is read. Constant zeros would not depend on q: XLA would create those
    # of all layers at the start of a step and keep them.
    unwritten = q[:1, :, : scoring.value_dim]
    unwritten = jnp.broadcast_to(unwritten, (num_groups * group, *unwritten.shape[1:]))
    num_real = (jnp.sum(is_single) + group - 1) // group
    out = lax.fori_loop(0, num_real, attend_group, unwritten)
    return jnp.where(is_single[:, None, None], out[jnp.argsort(order)], 0)


def _attend_ragged(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    scoring: _Scoring,
) -> Float[Array, "tokens heads result_dim"]:
    """Divide the rows of each sequence into blocks, attend, and put the rows back in order.

    Sequences with one row are handled by _attend_single: their blocks would be mostly padding.
    """
    num_tokens, num_heads, _ = q.shape
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
        # Blocks after the last one start after their sequence's rows, so their count is 0.
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
            scoring,
        )
        return lax.dynamic_update_slice_in_dim(out, result, group * BLOCK_GROUP, axis=0)

    num_blocks = _num_groups(num_tokens, num_sequences) * BLOCK_GROUP
    num_padding = num_blocks * QUERY_BLOCK - num_tokens
    # See _attend_single.
    unwritten = jnp.pad(q[..., : scoring.value_dim], ((0, num_padding), (0, 0), (0, 0)))
    out = lax.fori_loop(
        0,
        -(-block_ends[-1] // BLOCK_GROUP),
        attend_group,
        unwritten.reshape(num_blocks, QUERY_BLOCK, num_heads, scoring.value_dim),
    )
    # Block of every row, and offset in the block.
    row_indices = jnp.arange(num_tokens) - batch.query_starts[batch.row_sequences]
    first_blocks = (block_ends - block_counts)[batch.row_sequences]
    gathered = out.at[first_blocks + row_indices // QUERY_BLOCK, row_indices % QUERY_BLOCK].get(
        mode="clip"
    )
    single = _attend_single(q, cache, batch, scoring, rows=batch.query_starts[:-1])
    is_single_row = is_single[batch.row_sequences][:, None, None]
    gathered = jnp.where(is_single_row, single[batch.row_sequences], gathered)
    is_real = jnp.arange(num_tokens) < batch.query_starts[-1]
    return jnp.where(is_real[:, None, None], gathered, 0)


def _num_groups(num_tokens: int, num_sequences: int) -> int:
    """Return the largest possible number of groups: n rows make ceil(n / QUERY_BLOCK) blocks."""
    num_blocks = num_tokens // QUERY_BLOCK + num_sequences
    return -(-num_blocks // BLOCK_GROUP)


def _attend_blocks(
    q: Float[Array, "blocks rows heads head_dim"],
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    sequences: Int32[Array, " blocks"],
    first_positions: Int32[Array, " blocks"],
    counts: Int32[Array, " blocks"],
    scoring: _Scoring,
) -> Float[Array, "blocks rows heads result_dim"]:
    """Attend with blocks of `counts` rows at consecutive positions; other rows are zeros."""
    num_blocks, num_rows, num_heads, head_dim = q.shape
    kv_heads, page_size = cache.shape[2], cache.shape[3]
    group = num_heads // kv_heads
    chunk_pages = max(1, CHUNK_TOKENS // page_size)
    chunk = chunk_pages * page_size
    width = -(-batch.page_table.shape[1] // chunk_pages) * chunk_pages
    page_table = jnp.pad(batch.page_table, ((0, 0), (0, width - batch.page_table.shape[1])))
    page_table = page_table[sequences]

    # [blocks, kv_heads, group * rows, head_dim]: query heads of a KV head count as rows.
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
        values = (
            _gather(cache[1], pages).astype(q.dtype)
            if cache.shape[0] == 2
            else keys[..., : scoring.value_dim]
        )
        # Unwritten slots must not affect the sum: 0 * NaN is NaN.
        is_written = key_positions < lengths[:, None]
        values = jnp.where(is_written[:, None, :, None], values, 0)
        scores = scoring.scale * jnp.einsum(
            "bhrk,bhck->bhrc", folded, keys, preferred_element_type=jnp.float32
        )
        if scoring.soft_cap is not None:
            scores = scoring.soft_cap * jnp.tanh(scores / scoring.soft_cap)
        is_visible = key_positions <= positions
        if scoring.sliding_window is not None:
            is_visible &= key_positions > positions - scoring.sliding_window
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
    if scoring.sliding_window is not None:
        earliest = jnp.where(counts > 0, first_positions, _NEVER)
        first_chunk = jnp.maximum(jnp.min(earliest) - scoring.sliding_window + 1, 0) // chunk
    last_chunk = (jnp.max(lengths) + chunk - 1) // chunk
    shape = folded.shape[:3]
    maximum, total = jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    if scoring.sinks is not None:
        # A sink counts as a key before all others, with value 0.
        per_row = jnp.repeat(scoring.sinks.reshape(kv_heads, group), num_rows, axis=1)
        maximum, total = jnp.broadcast_to(per_row, shape), jnp.ones(shape, jnp.float32)
    _, total, out = lax.fori_loop(
        first_chunk,
        last_chunk,
        attend_chunk,
        (maximum, total, jnp.zeros((*shape, scoring.value_dim), jnp.float32)),
    )
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    out = out.reshape(num_blocks, kv_heads, group, num_rows, scoring.value_dim)
    unfolded: jax.Array = out.transpose(0, 3, 1, 2, 4).reshape(*q.shape[:-1], -1).astype(q.dtype)
    return unfolded


def _gather(
    plane: Shaped[Array, "pages kv_heads page_size head_dim"],
    pages: Int32[Array, "blocks chunk_pages"],
) -> Shaped[Array, "blocks kv_heads chunk head_dim"]:
    """Gather pages with the heads first, the order in which the products read them.

    Otherwise XLA gathers keys with head_dim before the tokens, which costs a quarter of the op's
    time on a CPU.
    """
    found = plane.at[pages].get(mode="promise_in_bounds").transpose(0, 2, 1, 3, 4)
    merged: jax.Array = found.reshape(*found.shape[:2], -1, found.shape[-1])
    return merged
