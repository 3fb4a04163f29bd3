"""Inputs of paged attention: layer configuration, ragged batch, and cache layout."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Static configuration of a layer's attention on one device.

    dtype: name of the dtype of queries and results. cache_dtype: name of the dtype of the pages.
    soft_cap: a score s becomes soft_cap * tanh(s / soft_cap). sinks: whether each head has a sink,
    a logit that takes part in the softmax but has no value. value_dim: values are the first
    value_dim dimensions of the keys and are not stored separately; None: they are stored, and have
    head_dim dimensions.
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
    value_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads ({self.kv_heads}), got {self.heads}"
            )
        if self.value_dim is not None and not 1 <= self.value_dim <= self.head_dim:
            raise ValueError(f"value_dim must be in [1, {self.head_dim}], got {self.value_dim}")

    @property
    def group(self) -> int:
        """Number of query heads per key/value head."""
        return self.heads // self.kv_heads

    @property
    def result_dim(self) -> int:
        """Dimensions of a value, and of a head's result."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def num_planes(self) -> int:
        """Arrays of head_dim numbers that the cache holds per token: keys, or keys and values."""
        return 2 if self.value_dim is None else 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["page_table", "query_starts", "kv_lengths", "row_sequences", "positions"],
    meta_fields=["max_query_length"],
)
@dataclass(frozen=True, kw_only=True)
class PagedBatch:
    """Rows of a step by sequence, and the pages of each sequence.

    Rows [query_starts[s], query_starts[s + 1]) are the last queries of sequence s, in order. Rows
    from query_starts[-1] on are padding, and so are sequences without rows. `kv_lengths` counts the
    tokens of a sequence including those of this step, so row r of sequence s has position
    kv_lengths[s] - query_starts[s + 1] + r. Token p of a sequence is at offset p % page_size of
    page page_table[s, p // page_size]. Page 0 is the null page: padding rows write to it. Padding
    rows may have any valid position. Entries of the page table beyond a sequence's tokens may have
    any value. `max_query_length` is static: 1 promises that every sequence has at most one row, and
    that row s belongs to sequence s.

    `make_batch` creates a batch from plain lists.
    """

    page_table: jax.Array  # int32[sequences, pages]
    query_starts: jax.Array  # int32[sequences + 1], not decreasing
    kv_lengths: jax.Array  # int32[sequences]
    row_sequences: jax.Array  # int32[tokens]; any valid index for padding rows
    positions: jax.Array  # int32[tokens]
    max_query_length: int  # static

    def checked(self, *, num_tokens: int, num_pages: int, page_size: int) -> "PagedBatch":
        """Return the batch as int32 arrays, checked for `num_tokens` rows and `num_pages` pages.

        Raises ValueError for wrong shapes and dtypes and, outside of jit, for invalid numbers.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        num_sequences = np.shape(self.kv_lengths)[0] if np.ndim(self.kv_lengths) == 1 else 0
        width = np.shape(self.page_table)[1] if np.ndim(self.page_table) == 2 else 0
        shapes = {
            "page_table": (num_sequences, width),
            "query_starts": (num_sequences + 1,),
            "kv_lengths": (num_sequences,),
            "row_sequences": (num_tokens,),
            "positions": (num_tokens,),
        }
        for name, array in arrays.items():
            if np.shape(array) != shapes[name]:
                raise ValueError(f"{name} must have shape {shapes[name]}, got {np.shape(array)}")
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise ValueError(f"{name} must hold integers, got {array.dtype}")
        if min(num_sequences, width) < 1:
            raise ValueError(f"page_table must have a row and a column, got {shapes['page_table']}")
        if self.max_query_length == 1 and num_sequences != num_tokens:
            raise ValueError(
                f"max_query_length of 1 needs a row per sequence, got {num_tokens} rows and"
                f" {num_sequences} sequences"
            )
        if not any(isinstance(array, jax.core.Tracer) for array in arrays.values()):
            known = {name: np.asarray(array, np.int64) for name, array in arrays.items()}
            _check_numbers(known, self.max_query_length, num_pages, page_size)
        int32 = {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}
        return replace(self, **cast(Any, int32))

    def confined(self, *, num_tokens: int, num_pages: int, page_size: int) -> "PagedBatch":
        """Return the batch with indices that are valid for the arrays.

        Under jit, numbers cannot be checked at trace time. Pages that the cache does not have
        become page 0. Invalid query ranges and lengths turn all rows into padding.
        """
        is_page = (self.page_table >= 0) & (self.page_table < num_pages)
        rows = jnp.diff(self.query_starts)
        is_right = (rows >= 0) & (rows <= min(self.max_query_length, num_tokens))
        capacity = self.page_table.shape[1] * page_size
        is_right &= (rows == 0) | ((rows <= self.kv_lengths) & (self.kv_lengths <= capacity))
        is_right &= (self.query_starts[0] == 0) & (self.query_starts[-1] <= num_tokens)
        return replace(
            self,
            page_table=jnp.where(is_page, self.page_table, 0),
            query_starts=jnp.where(jnp.all(is_right), self.query_starts, 0),
        )


_ARRAYS = tuple(f.name for f in fields(PagedBatch) if f.name != "max_query_length")


def make_batch(
    *,
    query_lengths: Sequence[int],
    kv_lengths: Sequence[int],
    page_tables: Sequence[Sequence[int]],
    page_size: int,
    num_tokens: int | None = None,
    num_sequences: int | None = None,
    table_width: int | None = None,
) -> PagedBatch:
    """Create the batch of a step; `attend` expects the sequences' new rows in the same order.

    query_lengths: number of new tokens (rows) of each sequence. kv_lengths: number of tokens of
    each sequence, including the new ones. page_tables: pages of each sequence, at least as many as
    its tokens fill.

    num_tokens, num_sequences and table_width (pages) are the sizes of the arrays, filled up with
    padding, so that steps of different sizes can run the same compiled program. They default to
    the sizes needed. If every sequence has one new token, and num_tokens equals num_sequences, the
    batch has max_query_length=1.

    Raises ValueError, naming the parameter, for arguments that do not match.
    """
    num_rows, count = sum(query_lengths), len(kv_lengths)
    needed = [-(-length // page_size) for length in kv_lengths]
    for name, given in (("query_lengths", query_lengths), ("page_tables", page_tables)):
        if len(given) != count:
            raise ValueError(f"{name} must have {count} entries, as kv_lengths, got {len(given)}")
    for s, (rows, length, pages) in enumerate(
        zip(query_lengths, kv_lengths, page_tables, strict=True)
    ):
        if not 0 <= rows <= length:
            raise ValueError(f"query_lengths[{s}] must be in [0, {length}], got {rows}")
        if len(pages) < needed[s]:
            raise ValueError(
                f"page_tables[{s}] must have {needed[s]} pages for {length} tokens,"
                f" got {len(pages)}"
            )
        for page in pages[: needed[s]]:
            if page < 1:
                raise ValueError(f"page_tables[{s}] must hold pages from 1 on, got {page}")
    num_tokens = _room("num_tokens", num_tokens, max(num_rows, 1))
    num_sequences = _room("num_sequences", num_sequences, max(count, 1))
    table_width = _room("table_width", table_width, max([*needed, 1]))

    table = np.zeros((num_sequences, table_width), np.int32)
    for s, pages in enumerate(page_tables):
        table[s, : needed[s]] = pages[: needed[s]]
    lengths = np.pad(np.asarray(kv_lengths, np.int32), (0, num_sequences - count))
    rows_of = np.pad(np.asarray(query_lengths, np.int32), (0, num_sequences - count))
    starts = np.append(0, np.cumsum(rows_of))
    padding = (0, num_tokens - num_rows)
    row_sequences = np.repeat(np.arange(num_sequences), rows_of)
    positions = np.arange(num_rows) + (lengths - starts[1:])[row_sequences]
    is_decode = num_tokens == num_sequences and all(rows == 1 for rows in query_lengths)

    def int32(array: ArrayLike) -> jax.Array:
        return jnp.asarray(array, jnp.int32)

    return PagedBatch(
        page_table=int32(table),
        query_starts=int32(starts),
        kv_lengths=int32(lengths),
        row_sequences=int32(np.pad(row_sequences, padding)),
        positions=int32(np.pad(positions, padding)),
        max_query_length=1 if is_decode else num_tokens,
    )


def _room(name: str, asked: int | None, needed: int) -> int:
    if asked is not None and asked < needed:
        raise ValueError(f"{name} must be at least {needed}, got {asked}")
    return needed if asked is None else asked


def _check_numbers(
    arrays: dict[str, np.ndarray], max_query_length: int, num_pages: int, page_size: int
) -> None:
    """Raise ValueError, naming the entry, for invalid numbers."""
    starts, lengths, table = (arrays[n] for n in ("query_starts", "kv_lengths", "page_table"))
    num_tokens, capacity = arrays["positions"].shape[0], table.shape[1] * page_size
    rows = np.diff(starts)
    if starts[0] != 0 or starts[-1] > num_tokens or rows.min() < 0:
        raise ValueError(
            f"query_starts must rise from 0 to at most the {num_tokens} rows, got {starts.tolist()}"
        )
    if rows.max() > max_query_length:
        raise ValueError(
            f"max_query_length must be at least the {rows.max()} rows of sequence {rows.argmax()},"
            f" got {max_query_length}"
        )
    # Row s must belong to sequence s, so sequences without rows come last.
    if max_query_length == 1 and np.any(np.diff(rows) > 0):
        raise ValueError(
            "with max_query_length=1, sequences without rows must come last, got query_starts"
            f" {starts.tolist()}"
        )
    for s in np.flatnonzero(rows):
        if not rows[s] <= lengths[s] <= capacity:
            raise ValueError(
                f"kv_lengths[{s}] must be in [{rows[s]}, {capacity}], between its rows in this step"
                f" and what {table.shape[1]} pages of {page_size} hold, got {lengths[s]}"
            )
        for page in table[s, : -(-lengths[s] // page_size)]:
            if not 0 <= page < num_pages:
                raise ValueError(f"page_table[{s}] must hold pages in [0, {num_pages}), got {page}")
    row_sequences = np.repeat(np.arange(len(rows)), rows)
    wanted = {
        "row_sequences": row_sequences,
        "positions": np.arange(len(row_sequences)) + (lengths - starts[1:])[row_sequences],
    }
    for name, right in wanted.items():
        wrong = np.flatnonzero(arrays[name][: len(right)] != right)
        if wrong.size:
            row = wrong[0]
            raise ValueError(f"{name}[{row}] must be {right[row]}, got {arrays[name][row]}")


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Shape, dtype and axis names of one layer's KV cache; the layout is up to the backend."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    axes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the array in bytes, on all devices together."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
