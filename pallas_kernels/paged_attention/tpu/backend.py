"""The backend for TPUs: ragged paged attention in Pallas, for v4 and later.

Sequences with one row are decoded by one kernel; the rows of the others are written to the cache by
a second one, and attended with by a third. Each finds its sequences in the batch by itself, in any
order. layout.py tells what the cache looks like, stream.py how it is read. Nothing here was
run on a TPU: kernels are simulated, and compiled for every generation by its own compiler.

Pages and the page table are those of PagedAttention (Kwon et al. 2023, arXiv:2309.06180); that
decode and prefill are apart, that decode writes the cache while it reads, and that copies run ahead
of the arithmetic across sequences are ideas of Ragged Paged Attention (arXiv:2604.15464).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Shaped

from pallas_kernels import simulation
from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention import reference
from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.paged_attention.tpu import tuning
from pallas_kernels.paged_attention.tpu.decode import decode
from pallas_kernels.paged_attention.tpu.layout import LANES, layout_of
from pallas_kernels.paged_attention.tpu.prefill import prefill
from pallas_kernels.paged_attention.tpu.softmax import Scoring
from pallas_kernels.paged_attention.tpu.tuning import VMEM_BYTES
from pallas_kernels.paged_attention.tpu.write import write
from pallas_kernels.targets import Target

_DTYPES = ("bfloat16", "float32")
_CACHE_DTYPES = ("bfloat16", "float32", "float8_e4m3fn", "int8")
# Three rows of the page table, in 1 MiB of scalar memory.
_MAX_TABLE_WIDTH = 1 << 16


def check(config: AttentionConfig, target: Target) -> None:
    """See api.Backend."""
    if target.architecture not in VMEM_BYTES:
        raise Unsupported(f"needs TPU {' or '.join(VMEM_BYTES)}, got {target.architecture}")
    if config.dtype not in _DTYPES:
        raise Unsupported(f"queries must be {' or '.join(_DTYPES)}, got {config.dtype}")
    if config.cache_dtype not in _CACHE_DTYPES:
        raise Unsupported(f"a cache must be {' or '.join(_CACHE_DTYPES)}, got {config.cache_dtype}")
    if not LANES // 2 <= config.head_dim <= 2 * LANES:
        raise Unsupported(f"head_dim must be in [{LANES // 2}, {2 * LANES}], got {config.head_dim}")
    layout = layout_of(config)
    if config.page_size % layout.tile:
        raise Unsupported(
            f"page_size must be a multiple of {layout.tile} for {config.cache_dtype}, "
            f"got {config.page_size}"
        )
    tuning.check(layout, VMEM_BYTES[target.architecture])


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """[pages, kv_heads, page_size, lanes]: a page is one copy, a head in it one tile of K and V."""
    return CacheSpec(
        shape=(num_pages, config.kv_heads, config.page_size, layout_of(config).lanes),
        dtype=jnp.dtype(config.cache_dtype),
        axes=("pages", "kv_heads", "offsets", "lanes"),
    )


empty_cache = reference.empty_cache


def workspace_bytes(
    config: AttentionConfig,
    target: Target,
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
) -> int:
    """See api.Backend: what the kernels read and write, with the axes in their order.

    The copy of the page table is left out, whose width is not known here: 4 bytes an entry.
    """
    del target
    layout = layout_of(config)
    new = layout.kv_heads * layout.lanes * layout.cache_dtype.itemsize
    queries = layout.heads * layout.key_lanes * layout.dtype.itemsize
    results = layout.heads * layout.value_lanes * layout.dtype.itemsize
    if max_query_length == 1:
        return num_tokens * (new + queries + results)
    # In order of rows and in order of heads; new keys and values between the two as well.
    prefill_bytes = num_tokens * (3 * new + 2 * queries + 2 * results)
    return prefill_bytes + num_sequences * (new + queries)


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Shaped[Array, "tokens kv_heads head_dim"],
    v: Shaped[Array, "tokens kv_heads head_dim"],
    cache: Shaped[Array, "pages kv_heads page_size lanes"],
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads head_dim"], jax.Array]:
    """See api.Backend; raises Unsupported for page tables wider than 65536."""
    num_tokens, (num_sequences, table_width) = q.shape[0], batch.page_table.shape
    if table_width > _MAX_TABLE_WIDTH:
        raise Unsupported(f"a sequence has at most {_MAX_TABLE_WIDTH} pages, got {table_width}")
    batch = batch.confined(
        num_tokens=num_tokens, num_pages=cache.shape[0], page_size=config.page_size
    )
    layout, options = layout_of(config), _options(target)
    scoring = Scoring(spec.scale, config.soft_cap, config.sliding_window)
    vmem_bytes = VMEM_BYTES[target.architecture]
    row_counts = jnp.diff(batch.query_starts)
    queries, new = layout.pad_queries(q), layout.join(k, v)
    prefilled = None
    if batch.max_query_length > 1:
        with jax.named_scope("kv_write"):
            cache = write(new, cache, batch, row_counts > 1, layout=layout, options=options)
        with jax.named_scope("paged_attention"):
            prefilled = prefill(
                queries,
                cache,
                spec.sinks,
                batch,
                row_counts > 1,
                layout=layout,
                scoring=scoring,
                sizes=tuning.prefill_sizes(
                    layout, vmem_bytes, table_width=table_width, num_tokens=num_tokens
                ),
                options=options,
            )
        queries = queries.at[batch.query_starts[:-1]].get(mode="clip")
        new = new.at[batch.query_starts[:-1]].get(mode="clip")
    with jax.named_scope("paged_attention"):
        # It overwrites the cache that the prefill reads. By the prefill's results it is bound to
        # come later: XLA would copy the whole cache to keep two apart that it may reorder.
        out, cache = decode(
            queries,
            new,
            cache,
            prefilled,
            spec.sinks,
            batch,
            row_counts == 1,
            layout=layout,
            scoring=scoring,
            sizes=tuning.decode_sizes(
                layout, vmem_bytes, table_width=table_width, num_sequences=num_sequences
            ),
            options=options,
        )
        out = layout.cut(out)
        if prefilled is None:
            is_real = jnp.arange(num_tokens) < batch.query_starts[-1]
            out = jnp.where(is_real[:, None, None], out, 0)
    return out, cache


def _options(target: Target) -> dict[str, Any]:
    """Return how a kernel is compiled, or simulated."""
    if target.is_simulated:
        params = pltpu.InterpretParams(
            detect_races=simulation.detect_races.get(),
            dma_execution_mode="eager" if simulation.eager_copies.get() else "on_wait",
        )
        return {"interpret": params}
    # All but what the compiler needs for itself; a kernel takes what it uses, and no more.
    limit = VMEM_BYTES[target.architecture] // 16 * 15
    return {"compiler_params": pltpu.CompilerParams(vmem_limit_bytes=limit)}
