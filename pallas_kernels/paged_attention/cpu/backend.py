"""The backend for CPUs: ragged paged attention in C, called by XLA.

XLA cannot read through a page table: the reference compiles to code that copies every page before
multiplying, at a quarter of the memory's bandwidth. attend.c reads the pages in place.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.native.library import register
from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.targets import Target

# As in attend.c: lanes of a vector, rows of a work item, tokens of a block.
_LANES, _ROWS, _BLOCK = 8, 32, 32
SOURCE = Path(__file__).with_name("attend.c")
FUNCTIONS = ("paged_attention", "paged_attention_empty_cache")


def check(config: AttentionConfig, target: Target) -> None:
    """See api.Backend."""
    del target
    for name in ("head_dim", "result_dim"):
        if getattr(config, name) % _LANES:
            raise Unsupported(f"{name} must be a multiple of {_LANES}, got {getattr(config, name)}")
    register(SOURCE, FUNCTIONS)


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """Return [pages, kv_heads, key/value, page_size, head_dim]: a head's data is contiguous."""
    return CacheSpec(
        shape=(num_pages, config.kv_heads, config.num_planes, config.page_size, config.head_dim),
        dtype=jnp.dtype(config.cache_dtype),
        axes=("pages", "kv_heads", "planes", "offsets", "head_dim"),
    )


def empty_cache(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """See api.Backend. The operating system allocates most pages when they are first used."""
    register(SOURCE, FUNCTIONS)
    # A side effect, because XLA would merge the calls for equal layers into one, and copy it.
    make = jax.ffi.ffi_call("paged_attention_empty_cache", spec, has_side_effect=True)
    cache: jax.Array = make()
    return cache


def workspace_bytes(
    config: AttentionConfig,
    target: Target,
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
) -> int:
    """See api.Backend. Counts queries and results in float32, and buffers of each thread."""
    del num_sequences, max_query_length
    of_thread = _ROWS * (2 * config.head_dim + _BLOCK) + _BLOCK * config.head_dim
    of_row = config.heads * (config.head_dim + config.result_dim)
    return 4 * (num_tokens * of_row + target.cores * of_thread)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    cache: jax.Array,
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[jax.Array, jax.Array]:
    """See api.Backend."""
    del target
    results = (
        jax.ShapeDtypeStruct((*q.shape[:-1], config.result_dim), jnp.float32),
        jax.ShapeDtypeStruct(cache.shape, cache.dtype),
    )
    call = jax.ffi.ffi_call("paged_attention", results, input_output_aliases={3: 1})
    with jax.named_scope("paged_attention"):
        out, cache = call(
            q.astype(jnp.float32),
            k,
            jnp.zeros(0, k.dtype) if v is None else v,
            cache,
            batch.page_table,
            batch.query_starts,
            batch.kv_lengths,
            jnp.zeros(0, jnp.float32) if spec.sinks is None else spec.sinks,
            scale=np.float32(spec.scale),
            soft_cap=np.float32(config.soft_cap or 0),
            sliding_window=np.int32(config.sliding_window or 0),
        )
    return out.astype(q.dtype), cache
