"""Paged attention on Hopper (compute capability 9.0): TMA per page, wgmma, online softmax.

One kernel body implements both functions of `backend.Kernels`. The rows of its score tiles are
query tokens times the query heads of one key/value head, 64 per warpgroup, so that a key is fetched
once for all of them. Tiles of keys and values are prefetched page by page into a ring buffer.

Decode uses thread blocks of one warpgroup, small enough for two of them to share a core: while one
waits or computes exponentials, the other multiplies. Prefill uses two warpgroups that alternate on
the tensor cores and a third that only fetches, as in FlashAttention-3 (arXiv:2407.08608).
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.combine import interpreter
from pallas_kernels.paged_attention.mosaic_gpu.sm90_body import (
    ROWS,
    KernelParams,
    has_aligned_queries,
    is_narrow,
    run,
    swizzle_of,
)
from pallas_kernels.paged_attention.mosaic_gpu.sm90_ring import Plan
from pallas_kernels.paged_attention.mosaic_gpu.work import Blocks
from pallas_kernels.targets import Target

# Bytes of shared memory: of a core, of a thread block at most, and reserved by CUDA per block.
_CORE_BYTES = 233472
_BLOCK_BYTES = 232448
_DRIVER_BYTES = 1024

# Bytes left for barriers.
_SPARE_BYTES = 512

# Most tiles in flight; see decode_plan for how much covers the memory latency.
_MOST_STAGES = 6


def check(config: AttentionConfig) -> None:
    """See backend.Kernels."""
    if config.group > ROWS:
        raise Unsupported(f"at most {ROWS} query heads share a KV head, got {config.group}")
    if config.head_dim % 32 or not 64 <= config.head_dim <= 256:
        raise Unsupported(f"wgmma needs head_dim in 64, 96, ... 256, got {config.head_dim}")
    if config.page_size < 16 or config.page_size & (config.page_size - 1):
        raise Unsupported(
            f"tiles need page_size to be a power of two from 16 on, got {config.page_size}"
        )
    if config.group > 1 and not has_aligned_queries(config):
        raise Unsupported(
            "TMA needs the heads of a query that share a KV head to be a multiple of 128 bytes, got"
            f" {config.group} of head_dim {config.head_dim}"
        )
    if not is_narrow(config) and config.cache_dtype != config.dtype:
        raise Unsupported(
            f"wgmma multiplies equals: {config.dtype} by a cache of {config.cache_dtype}"
        )


def blocks(config: AttentionConfig) -> Blocks:
    """See backend.Kernels."""
    return Blocks(
        decode_tokens=ROWS // config.group,
        decode_keys=decode_plan(config, 1).keys,
        prefill_tokens=2 * (ROWS // config.group),
        item_blocks=config.kv_heads,
    )


def decode(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    page_table: Int32[Array, "sequences pages"],
    items: Int32[Array, "items fields"],
    *,
    query_tokens: int,
    scale: float,
    config: AttentionConfig,
    target: Target,
) -> tuple[
    Float[Array, "items query_tokens heads head_dim"], Float[Array, "items query_tokens heads"]
]:
    """See backend.Kernels."""
    num_items, heads, head_dim = items.shape[0], config.heads, config.head_dim
    # All rows of an item's tile are read, including those after its last row.
    q = jnp.pad(q, ((0, query_tokens - 1), (0, 0), (0, 0)))
    kernel = _kernel(
        "paged_attention_decode",
        num_items,
        (
            jax.ShapeDtypeStruct((num_items, query_tokens, heads, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((num_items, query_tokens, heads), jnp.float32),
        ),
        decode_plan(config, query_tokens),
        scale,
        config,
        target,
    )
    parts, sums = kernel(q, cache, page_table, items)
    return parts, sums


def prefill(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "2 pages kv_heads page_size head_dim"],
    page_table: Int32[Array, "sequences pages"],
    items: Int32[Array, "items fields"],
    *,
    scale: float,
    sinks: Float[Array, " heads"] | None,
    config: AttentionConfig,
    target: Target,
) -> Float[Array, "tokens heads head_dim"]:
    """See backend.Kernels."""
    plan = prefill_plan(config, num_tokens=q.shape[0])
    kernel = _kernel(
        "paged_attention_prefill",
        items.shape[0],
        (jax.ShapeDtypeStruct(q.shape, q.dtype),),
        plan,
        scale,
        config,
        target,
    )
    operands = [q, cache, page_table, items]
    if sinks is not None:
        operands.append(tiles.fold_sinks(sinks, config.kv_heads, ROWS))
    (out,) = kernel(*operands)
    return cast(jax.Array, out)


def _stages(config: AttentionConfig, warpgroups: int, keys: int, budget: int) -> int:
    """Return how many stages fit into `budget`, beside the queries and the widened tiles."""
    row = config.head_dim * jnp.dtype(config.dtype).itemsize
    fixed = warpgroups * ROWS * row + (2 * keys * row if is_narrow(config) else 0)
    stage = 2 * keys * config.head_dim * jnp.dtype(config.cache_dtype).itemsize
    return min(_MOST_STAGES, (budget - _SPARE_BYTES - fixed) // stage)


def decode_plan(config: AttentionConfig, query_tokens: int) -> Plan:
    """Use tiles of 64 keys if half a core has room for three stages of them, else of 32.

    Latency times bandwidth of an H200 is about 40 kB per core, which two blocks have in flight.
    """
    budget = _CORE_BYTES // 2 - _DRIVER_BYTES
    keys = 64 if _stages(config, 1, 64, budget) >= 3 else 32
    stages = _stages(config, 1, keys, budget)
    return Plan(warpgroups=1, tokens=query_tokens, keys=keys, stages=stages, is_split=True)


def prefill_plan(config: AttentionConfig, *, num_tokens: int) -> Plan:
    """Use tiles of 128 keys if their scores fit into registers beside the results, else of 64."""
    keys = 128 if config.head_dim <= 128 else 64
    stages = _stages(config, 2, keys, _BLOCK_BYTES)
    tokens = min(ROWS // config.group, num_tokens)
    return Plan(warpgroups=2, tokens=tokens, keys=keys, stages=stages, is_split=False)


def _kernel(
    name: str,
    num_items: int,
    out_type: tuple[jax.ShapeDtypeStruct, ...],
    plan: Plan,
    scale: float,
    config: AttentionConfig,
    target: Target,
) -> Callable[..., Any]:
    """Create the kernel, with one thread block per item and key/value head."""
    params = KernelParams(plan=plan, config=config, scale=scale, is_simulated=target.is_simulated)

    def body(*refs: Any, **scratch: Any) -> None:
        run(params, refs, scratch)

    return cast(
        Callable[..., Any],
        plgpu.kernel(
            body,
            out_type=out_type,
            scratch_types=_scratch(plan, config, is_simulated=target.is_simulated),
            grid=(num_items, config.kv_heads),
            grid_names=("item", "kv_head"),
            num_threads=plan.num_threads,
            thread_name="warpgroup",
            kernel_name=name,
            # Rows are reduced within a warp, without scratch.
            compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
            interpret=interpreter(target),
        ),
    )


def _scratch(plan: Plan, config: AttentionConfig, *, is_simulated: bool) -> dict[str, Any]:
    """Describe shared memory and barriers, by name."""
    head_dim = config.head_dim
    dtype, cache_dtype = jnp.dtype(config.dtype), jnp.dtype(config.cache_dtype)

    def tile(*shape: int, dtype: jnp.dtype) -> Any:
        swizzle = swizzle_of(plan.keys, head_dim, dtype)
        # Type checkers take the classes for abstract, because their declared base class is.
        tiling, swizzling = cast(Any, plgpu.TilingTransform), cast(Any, plgpu.SwizzleTransform)
        transforms = tiling((8, swizzle // dtype.itemsize)), swizzling(swizzle)
        return plgpu.SMEM((*shape, head_dim), dtype, transforms=transforms)

    arrivals = max(1, plan.keys // config.page_size)
    # Queries and results are copied as rows, but wgmma reads tiles, so both forms share memory in
    # a union, with a part for each warpgroup. The simulator tracks a union as one object, so it
    # gets separate buffers.
    queries: Any = (
        plgpu.SMEM((plan.warpgroups, ROWS, head_dim), dtype),
        tile(plan.warpgroups, ROWS, dtype=dtype),
    )
    if plan.warpgroups == 1 or not is_simulated:
        queries = plgpu.RefUnion(*queries)
    slots = [tile(plan.stages, plan.keys, dtype=cache_dtype) for _ in range(2)]
    wide = [tile(plan.keys, dtype=dtype) for _ in range(2)] if is_narrow(config) else []
    ring: Any = ((slots, wide), None)
    if plan.is_split:
        # The partial result and sums reuse the memory of the keys, once all were read.
        part = [plgpu.SMEM((ROWS, head_dim), jnp.float32), plgpu.SMEM((ROWS,), jnp.float32)]
        ring = plgpu.RefUnion((slots, wide), part)
    scratch = {
        "queries": queries,
        "ring": ring,
        "q_ready": plgpu.Barrier(
            num_arrivals=1 if config.group == 1 else plan.tokens, num_barriers=plan.warpgroups
        ),
        "ready": [plgpu.Barrier(num_arrivals=arrivals, num_barriers=plan.stages) for _ in range(2)],
    }
    if not plan.is_split:
        readers = 1 if is_narrow(config) else plan.warpgroups
        scratch["free"] = [
            plgpu.Barrier(num_arrivals=readers, num_barriers=plan.stages) for _ in range(2)
        ]
        scratch["turn"] = plgpu.Barrier(num_arrivals=plan.warpgroups)
    return scratch
