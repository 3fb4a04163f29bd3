"""The contract of paged attention, and the choice of who computes it."""

from collections.abc import Callable

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.dispatch import first_supported
from pallas_kernels.paged_attention import reference
from pallas_kernels.paged_attention.batch import CacheSpec, PagedBatch

type AttendFunction = Callable[..., tuple[jax.Array, jax.Array]]

# In order of preference.
BACKENDS: dict[str, AttendFunction] = {"reference": reference.attend}


def cache_spec(
    *, num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: DTypeLike
) -> CacheSpec:
    """Describe one layer's cache of `num_pages` pages, page 0 included, of `page_size` tokens."""
    return reference.cache_spec(
        num_pages=num_pages,
        page_size=page_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )


def workspace_bytes(
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: DTypeLike,
) -> int:
    """Estimate the temporary memory of one `attend` of these sizes, those of one device."""
    return reference.workspace_bytes(
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        max_query_length=max_query_length,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    cache: jax.Array,
    batch: PagedBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "tokens heads head_dim"], jax.Array]:
    """Write this step's keys and values into the cache, then attend causally over the pages.

    A query attends to the tokens of its own sequence up to its own position; with a
    `sliding_window` of w, to itself and the w - 1 before. Query head h reads key/value head
    h // (heads // kv_heads). `cache` (made after `cache_spec`) is returned updated; donate it.
    Padding rows come back as zeros and write to page 0 only. What lies in a page beyond a
    sequence's length, NaN included, never reaches a result.

    Raises Unsupported, with the reasons, when no backend (or not `backend`) can do the case.
    """
    return first_supported(
        "paged_attention",
        BACKENDS,
        backend,
        q,
        k,
        v,
        cache,
        batch,
        scale=scale,
        sliding_window=sliding_window,
    )
