"""What paged attention works on: a layer's demands, a ragged batch, the shape of a cache."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.typing import DTypeLike


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What a layer asks of paged attention, as one device sees it: all static.

    dtype: of queries and results; cache_dtype: of what lies in pages; both by name. soft_cap: a
    score s counts as soft_cap * tanh(s / soft_cap). sinks: whether each head has a sink, a
    logit that takes part in the softmax and brings no value.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    cache_dtype: str
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads ({self.kv_heads}), got {self.heads}"
            )

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["page_table", "query_starts", "kv_lengths", "row_sequences", "positions"],
    meta_fields=["max_query_length"],
)
@dataclass(frozen=True, kw_only=True)
class PagedBatch:
    """Which rows of a step belong to which sequence, and where its keys and values lie.

    Rows [query_starts[s], query_starts[s + 1]) are the last queries of sequence s, in order; rows
    from query_starts[-1] on are padding. A sequence without rows is padding too. `kv_lengths`
    counts the tokens of a sequence including this step's, so row r of sequence s stands at
    position kv_lengths[s] - query_starts[s + 1] + r. Token p of a sequence lies at offset
    p % page_size of page page_table[s, p // page_size]; page 0 belongs to nobody and takes what
    padding writes. Positions of padding rows are any valid ones; entries of the page table beyond
    those of a sequence's tokens are any pages. `max_query_length` is static: 1 promises that every
    sequence has at most one row, and that row s is the row of sequence s.
    """

    page_table: jax.Array  # int32[sequences, pages]
    query_starts: jax.Array  # int32[sequences + 1], not decreasing
    kv_lengths: jax.Array  # int32[sequences]
    row_sequences: jax.Array  # int32[tokens]; any valid index for padding rows
    positions: jax.Array  # int32[tokens]
    max_query_length: int  # static


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Shape, dtype and axis words of one layer's KV cache; only its backend indexes inside."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    axes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the array in bytes, over all devices."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
