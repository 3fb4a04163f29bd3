"""The backend for TPUs: ragged paged attention in Pallas, for v4 and later.

One kernel decodes the sequences with one row. For the other sequences, a second kernel writes the
rows to the cache, and a third attends. Each kernel selects its sequences from the batch, which may
be in any order. layout.py describes the cache, stream.py how it is read. None of this has run on a
TPU: the kernels are simulated, and compiled for every generation by its compiler.

Paging follows PagedAttention (Kwon et al. 2023, arXiv:2309.06180). Separate kernels for decode and
prefill, writing the cache while decode reads it, and prefetching across sequences follow Ragged
Paged Attention (arXiv:2604.15464).
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
# So that three rows of the page table fit into 1 MiB of scalar memory.
_MAX_TABLE_WIDTH = 1 << 16


def check(config: AttentionConfig, target: Target) -> None:
    """See api.Backend."""
    if target.architecture not in VMEM_BYTES:
        raise Unsupported(f"needs TPU {' or '.join(VMEM_BYTES)}, got {target.architecture}")
    if config.dtype not in _DTYPES:
        raise Unsupported(f"queries must be {' or '.join(_DTYPES)}, got {config.dtype}")
    if config.cache_dtype not in _CACHE_DTYPES:
        raise Unsupported(f"a cache must be {' or '.join(_CACHE_DTYPES)}, got {config.cache_dtype}")
    widest = (2 if config.value_dim is None else 5) * LANES
    if not LANES // 2 <= config.head_dim <= widest:
        raise Unsupported(f"head_dim must be in [{LANES // 2}, {widest}], got {config.head_dim}")
    layout = layout_of(config)
    if config.page_size % layout.tile:
        raise Unsupported(
            f"page_size must be a multiple of {layout.tile} for {config.cache_dtype}, "
            f"got {config.page_size}"
        )
    tuning.check(layout, VMEM_BYTES[target.architecture])


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """Return [pages, kv_heads, page_size, lanes]: a page is copied at once; see layout.py."""
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
    """See api.Backend. Counts the kernels' operands and results, with transposed axes.

    Leaves out the copy of the page table, 4 bytes per entry, because its width is not known here.
    """
    del target
    layout = layout_of(config)
    new = layout.kv_heads * layout.lanes * layout.cache_dtype.itemsize
    queries = layout.heads * layout.key_lanes * layout.dtype.itemsize
    results = layout.heads * layout.value_lanes * layout.dtype.itemsize
    if max_query_length == 1:
        return num_tokens * (new + queries + results)
    # Both row-major and head-major copies; new keys and values have an intermediate copy too.
    prefill_bytes = num_tokens * (3 * new + 2 * queries + 2 * results)
    return prefill_bytes + num_sequences * (new + queries)


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Shaped[Array, "tokens kv_heads head_dim"],
    v: Shaped[Array, "tokens kv_heads head_dim"] | None,
    cache: Shaped[Array, "pages kv_heads page_size lanes"],
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads result_dim"], jax.Array]:
    """See api.Backend. Raises Unsupported for page tables with more than 65536 columns."""
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
        # Decode overwrites the cache that prefill reads. Taking prefill's results as an operand
        # orders it after prefill; if XLA could reorder them, it would copy the whole cache.
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
    """Return the options to compile a kernel, or to simulate it."""
    if target.is_simulated:
        params = pltpu.InterpretParams(
            detect_races=simulation.detect_races.get(),
            dma_execution_mode="eager" if simulation.eager_copies.get() else "on_wait",
        )
        return {"interpret": params}
    # All but the compiler's own share. This is only a limit: a kernel takes what it uses.
    limit = VMEM_BYTES[target.architecture] // 16 * 15
    return {"compiler_params": pltpu.CompilerParams(vmem_limit_bytes=limit)}
