"""Paged attention on Blackwell (compute capability 10.0): TMA per page, tcgen05, tensor memory.

One kernel body implements both functions of `backend.Kernels`. The rows of its score tiles are
query tokens times the query heads of one key/value head, 128 per warpgroup. Decode uses one
warpgroup that computes and one that fetches, with half of a core's shared memory. The compiler
assigns more than 128 registers to each of the 256 threads, so only one such block runs on a core.
Prefill uses two warpgroups that compute, if tensor memory has room for them, and one that fetches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.combine import interpreter
from pallas_kernels.paged_attention.mosaic_gpu.sm100_body import ROWS, KernelParams, run
from pallas_kernels.paged_attention.mosaic_gpu.tile import KEYS
from pallas_kernels.paged_attention.mosaic_gpu.work import Blocks
from pallas_kernels.targets import Target

# Shared memory of a thread block. One block per core has 227 KiB; two have half of 228 KiB each,
# less 1 KiB that CUDA reserves (CUDA C++ Programming Guide, compute capability 10.0). In both cases
# 3 KiB are left for barriers and exchange between warps.
_WHOLE_BYTES = (227 - 3) * 1024
_HALF_BYTES = (113 - 3) * 1024

_TENSOR_COLUMNS = 512  # of tensor memory, 4 bytes wide


def check(config: AttentionConfig) -> None:
    """See backend.Kernels."""
    tiles.check(config, max_group=ROWS)


def blocks(config: AttentionConfig) -> Blocks:
    """See backend.Kernels."""
    return Blocks(
        decode_tokens=ROWS // config.group,
        decode_keys=KEYS,
        prefill_tokens=_warpgroups(config) * (ROWS // config.group),
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
    params = KernelParams(
        config=config,
        scale=scale,
        is_decode=True,
        warpgroups=1,
        stages=_num_stages(config, 1, _HALF_BYTES),
    )
    shape = (items.shape[0], query_tokens, config.heads)
    out_type = (
        jax.ShapeDtypeStruct((*shape, config.head_dim), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    parts, sums = _attend(params, out_type, q, cache, page_table, items, None, target)
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
    warpgroups = _warpgroups(config)
    params = KernelParams(
        config=config,
        scale=scale,
        is_decode=False,
        warpgroups=warpgroups,
        stages=_num_stages(config, warpgroups, _WHOLE_BYTES),
    )
    out_type = (jax.ShapeDtypeStruct(q.shape, q.dtype),)
    (out,) = _attend(params, out_type, q, cache, page_table, items, sinks, target)
    return out


def _attend(
    params: KernelParams,
    out_type: tuple[jax.ShapeDtypeStruct, ...],
    q: jax.Array,
    cache: jax.Array,
    page_table: jax.Array,
    items: jax.Array,
    sinks: jax.Array | None,
    target: Target,
) -> tuple[jax.Array, ...]:
    kv_heads = params.config.kv_heads

    def body(*refs: Any, **scratch: Any) -> None:
        run(params, refs, scratch)

    kernel = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=_scratch(params),
        grid=(items.shape[0], kv_heads),
        grid_names=("item", "kv_head"),
        num_threads=params.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name=f"paged_attention_{'decode' if params.is_decode else 'prefill'}_sm100",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=interpreter(target),
    )
    folded = tiles.fold(q, kv_heads, padding=params.warpgroups * ROWS)
    of_rows = () if sinks is None else (tiles.fold_sinks(sinks, kv_heads, ROWS),)
    result: tuple[jax.Array, ...] = kernel(folded, cache, page_table, items, *of_rows)
    return result


def _scratch(params: KernelParams) -> dict[str, Any]:
    """Describe shared memory, tensor memory and barriers of a thread block."""
    config, warpgroups, stages = params.config, params.warpgroups, params.stages
    head_dim, dtype = config.head_dim, config.dtype
    transforms = tiles.transforms(128 if head_dim % 64 == 0 else 64)
    ring = plgpu.SMEM((stages, KEYS, head_dim), dtype, transforms=transforms)
    # The result reuses the memory of the tiles.
    out_dtype = jnp.float32 if params.is_decode else dtype
    result = plgpu.SMEM((warpgroups, ROWS, head_dim), out_dtype), plgpu.SMEM((ROWS,), jnp.float32)
    scratch: dict[str, Any] = {
        "queries": plgpu.SMEM((warpgroups, ROWS, head_dim), dtype, transforms=transforms),
        "ring_or_result": plgpu.RefUnion((ring, ring), result),
    }
    scratch["products"] = plgpu.TMEM((ROWS, warpgroups * KEYS), jnp.float32)
    scratch["weights"] = plgpu.TMEM((ROWS, warpgroups * KEYS), dtype, packed=True)
    scratch["out"] = plgpu.TMEM((ROWS, warpgroups * head_dim), jnp.float32)
    boxes = max(1, KEYS // config.page_size)
    ready = plgpu.Barrier(num_arrivals=boxes, num_barriers=stages)
    free = plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages, orders_tensor_core=True)
    multiplied = plgpu.Barrier(num_barriers=warpgroups, orders_tensor_core=True)
    scratch["barriers"] = {
        "queries": plgpu.Barrier(num_barriers=warpgroups),
        "ready": (ready, ready),
        "ragged": plgpu.Barrier(num_arrivals=boxes),
        "free": (free, free),
        "products": multiplied,
        "out": multiplied,
        "done": plgpu.Barrier(num_arrivals=warpgroups),
    }
    return scratch


def _warpgroups(config: AttentionConfig) -> int:
    """Return how many computing warpgroups of a prefill block fit into tensor memory."""
    columns = KEYS + KEYS // 2 + config.head_dim  # products, weights and results
    return min(2, _TENSOR_COLUMNS // columns)


def _num_stages(config: AttentionConfig, warpgroups: int, num_bytes: int) -> int:
    """Return how many tiles of keys and values fit into `num_bytes` of shared memory."""
    row = 2 * config.head_dim
    return max(2, min(4, (num_bytes - warpgroups * ROWS * row) // (2 * KEYS * row)))
