"""Block sizes of the TPU kernels.

Nothing here was measured: no TPU was at hand. In the place of measurements stands a rule. Of the
vector memory, a quarter is for the buffers that pages are fetched into, half for queries, results
and what a softmax keeps, and a quarter for the compiler. If a copy takes one or two microseconds to
begin, the memory of a v5e could deliver about 1 MiB meanwhile, that of a v7x about 6: so much must
be on its way at any time, and is with blocks of 2 MiB and three of four buffers being filled.
"""

from dataclasses import dataclass
from math import gcd

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.tpu.layout import LANES, Layout, round_up

# Vector memory per TensorCore, as jax.experimental.pallas.tpu.get_tpu_info has it.
VMEM_BYTES = {
    "v4": 16 << 20,
    "v5e": 128 << 20,
    "v5p": 64 << 20,
    "v6e": 128 << 20,
    "v7x": 64 << 20,
}
BLOCK_BYTES = 2 << 20
BUFFERS = 4
# Rows of the page table in the scalar memory, and how much of its 1 MiB they may take.
TABLES = 8
_TABLE_BYTES = 512 << 10
STRIP_BYTES = 256 << 10
# Keys per product: scores of 8 queries are 4 registers, those of PRODUCT_ROWS are 128.
CHUNK = 512
PRODUCT_ROWS = 256
# Per step of the grid: a decode amortises the step, a prefill what it fetches for its rows.
DECODE_SEQUENCES = 16
PREFILL_ROWS = 256
# Rows of the narrowest tile that queries come in, bfloat16's.
_QUERY_TILE = 16
# KV heads whose products a decode interleaves.
_UNROLL = 4


@dataclass(frozen=True)
class StreamSizes:
    """How pages are fetched.

    block: tokens fetched at a time. chunk: tokens multiplied at a time, a divisor of block.
    buffers: blocks in the vector memory. tables: rows of the page table in the scalar memory.
    """

    block: int
    chunk: int
    buffers: int
    tables: int

    @property
    def tables_ahead(self) -> int:
        """Items, from the one to be fetched on, whose rows are in the scalar memory, or almost.

        The items of buffers that were fetched and not yet read, one for each, need theirs too.
        """
        return self.tables - self.buffers


@dataclass(frozen=True)
class DecodeSizes:
    """sequences: those whose queries are fetched together, in a step of the grid.

    unroll: KV heads worked on together, a divisor of all.
    """

    stream: StreamSizes
    sequences: int
    unroll: int


@dataclass(frozen=True)
class PrefillSizes:
    """rows: rows of the batch per step of the grid.

    heads: query heads that are multiplied together, a divisor of those of a KV head.
    """

    stream: StreamSizes
    rows: int
    heads: int


def check(layout: Layout, vmem_bytes: int) -> None:
    """Raise Unsupported where not even the smallest sizes fit into the vector memory."""
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
    """Return how many tokens of a page the write of a prefill puts together at a time."""
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
    # Blocks are whole registers of scores, unless pages are so large that few fit.
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
    """Queries, new keys and values, each in two buffers."""
    queries = layout.heads * layout.key_lanes * layout.dtype.itemsize
    return 2 * (queries + layout.kv_heads * layout.lanes * layout.cache_dtype.itemsize)


def _prefill_row_bytes(layout: Layout) -> int:
    """Queries and results, each in two buffers; maximum, total and weighted sum of values."""
    blocks = 2 * (layout.key_lanes + layout.value_lanes) * layout.dtype.itemsize
    return layout.heads * (blocks + 4 * (2 * LANES + layout.value_lanes))


def _divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n that is at most `limit`."""
    return max(d for d in range(1, limit + 1) if n % d == 0)
