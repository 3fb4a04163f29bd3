"""Block sizes of the TPU kernels.

These sizes follow from a rule and were not measured, because no TPU was available. A quarter of the
vector memory is for the buffers of pages, half for queries, results and the softmax, and a quarter
for the compiler. If a copy has a latency of one or two microseconds, the memory of a v5e can
deliver about 1 MiB in this time, and that of a v7x about 6 MiB. This much must always be in flight,
which blocks of 2 MiB with three of four buffers being filled achieve.
"""

from dataclasses import dataclass
from math import gcd

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.tpu.layout import LANES, Layout, round_up

# Vector memory per TensorCore, from jax.experimental.pallas.tpu.get_tpu_info.
VMEM_BYTES = {
    "v4": 16 << 20,
    "v5e": 128 << 20,
    "v5p": 64 << 20,
    "v6e": 128 << 20,
    "v7x": 64 << 20,
}
BLOCK_BYTES = 2 << 20
BUFFERS = 4
# Rows of the page table in the scalar memory, and their limit in bytes (of 1 MiB).
TABLES = 8
_TABLE_BYTES = 512 << 10
STRIP_BYTES = 256 << 10
# Keys per product: scores of 8 queries are 4 registers, those of PRODUCT_ROWS are 128.
CHUNK = 512
PRODUCT_ROWS = 256
# Per grid step. More sequences amortize the step of a decode, more rows the fetches of a prefill.
DECODE_SEQUENCES = 16
PREFILL_ROWS = 256
# Rows per tile of bfloat16, the narrowest dtype of queries.
_QUERY_TILE = 16
# KV heads whose products are interleaved in a decode.
_UNROLL = 4


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a stream of pages.

    block: tokens fetched at a time. chunk: tokens multiplied at a time, a divisor of block.
    buffers: blocks in the vector memory. tables: rows of the page table in the scalar memory.
    """

    block: int
    chunk: int
    buffers: int
    tables: int

    @property
    def tables_ahead(self) -> int:
        """Number of items, from the next to fetch, whose table rows are or will be in the ring.

        The other rows of the ring are for items in buffers that were fetched but not read yet.
        """
        return self.tables - self.buffers


@dataclass(frozen=True)
class DecodeSizes:
    """Sizes of a decode.

    sequences: sequences per grid step, whose queries are fetched together. unroll: KV heads
    processed together, a divisor of their number.
    """

    stream: StreamSizes
    sequences: int
    unroll: int


@dataclass(frozen=True)
class PrefillSizes:
    """Sizes of a prefill.

    rows: rows of the batch per grid step. heads: query heads multiplied together, a divisor of
    the query heads per KV head.
    """

    stream: StreamSizes
    rows: int
    heads: int


def check(layout: Layout, vmem_bytes: int) -> None:
    """Raise Unsupported if even the smallest sizes do not fit into the vector memory."""
    limit = vmem_bytes // 8
    if _page_bytes(layout) > limit:
        raise Unsupported(
            f"a page of all KV heads must have at most {limit} bytes, got {_page_bytes(layout)}"
        )
    limit = vmem_bytes // 2 // _QUERY_TILE
    if _prefill_row_bytes(layout) > limit:
        raise Unsupported(
            f"a row of {layout.heads} heads of {layout.head_dim} must take at most {limit} bytes"
            f" of vector memory, got {_prefill_row_bytes(layout)}"
        )


def decode_sizes(
    layout: Layout, vmem_bytes: int, *, table_width: int, num_sequences: int
) -> DecodeSizes:
    """Return the sizes of a decode of `num_sequences`, of at most `table_width` pages each."""
    stream = _stream_sizes(layout, vmem_bytes, table_width)
    most = max(1, vmem_bytes // 4 // _decode_row_bytes(layout))
    sequences = min(num_sequences, DECODE_SEQUENCES, most)
    return DecodeSizes(stream, sequences, unroll=_divisor(layout.kv_heads, _UNROLL))


def prefill_sizes(
    layout: Layout, vmem_bytes: int, *, table_width: int, num_tokens: int
) -> PrefillSizes:
    """Return the sizes of a prefill of `num_tokens` rows, of at most `table_width` pages each."""
    stream = _stream_sizes(layout, vmem_bytes, table_width)
    rows = max(_QUERY_TILE, min(PREFILL_ROWS, 1 << (num_tokens - 1).bit_length()))
    while rows > _QUERY_TILE and rows * _prefill_row_bytes(layout) > vmem_bytes // 2:
        rows //= 2
    heads = _divisor(layout.group, max(1, PRODUCT_ROWS // rows))
    return PrefillSizes(stream, rows, heads)


def strip_rows(layout: Layout) -> int:
    """Return how many tokens of a page a prefill writes at a time (see write.py)."""
    tile_bytes = _page_bytes(layout) // layout.page_size * layout.tile
    num_tiles = layout.page_size // layout.tile
    return layout.tile * _divisor(num_tiles, max(1, STRIP_BYTES // tile_bytes))


def _stream_sizes(layout: Layout, vmem_bytes: int, table_width: int) -> StreamSizes:
    num_buffers, tables = BUFFERS, TABLES
    is_large = _page_bytes(layout) > vmem_bytes // 4 // BUFFERS
    is_wide = 4 * table_width > _TABLE_BYTES // TABLES
    if is_large or is_wide:
        num_buffers, tables = 2, 3
    pages = max(1, min(BLOCK_BYTES, vmem_bytes // 4 // num_buffers) // _page_bytes(layout))
    # Blocks are whole registers of scores, unless pages are too large for that.
    unit = LANES // gcd(LANES, layout.page_size)
    if pages >= unit:
        pages = min(pages // unit * unit, round_up(table_width, unit))
    block = pages * layout.page_size
    chunk = block
    if block % LANES == 0:
        chunk = LANES * _divisor(block // LANES, CHUNK // LANES)
    return StreamSizes(block, chunk, num_buffers, tables)


def _page_bytes(layout: Layout) -> int:
    return layout.kv_heads * layout.page_size * layout.lanes * layout.cache_dtype.itemsize


def _decode_row_bytes(layout: Layout) -> int:
    """Return the bytes per row of queries, new keys and values, each double-buffered."""
    queries = layout.heads * layout.key_lanes * layout.dtype.itemsize
    return 2 * (queries + layout.kv_heads * layout.lanes * layout.cache_dtype.itemsize)


def _prefill_row_bytes(layout: Layout) -> int:
    """Return the bytes per row of double-buffered queries and results, and of the softmax."""
    blocks = 2 * (layout.key_lanes + layout.value_lanes) * layout.dtype.itemsize
    return layout.heads * (blocks + 4 * (2 * LANES + layout.value_lanes))


def _divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n that is at most `limit`."""
    return max(d for d in range(1, limit + 1) if n % d == 0)
