"""Paged attention on Ampere (compute capability 8.0): cp.async per page, mma per warp.

One kernel body implements both functions of `backend.Kernels`. A warpgroup computes 64 rows, 16 per
warp, over a part of the keys (decode) or over all visible keys (prefill), as in FlashAttention-2
(arXiv:2307.08691). Ampere has no TMA: the warpgroup itself starts the copies of later tiles before
it multiplies the current one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.combine import interpreter
from pallas_kernels.paged_attention.mosaic_gpu.sm80_body import ROWS, KernelParams, run
from pallas_kernels.paged_attention.mosaic_gpu.tile import KEYS
from pallas_kernels.paged_attention.mosaic_gpu.work import Blocks
from pallas_kernels.targets import Target

# Shared memory of a thread block, if two run on a multiprocessor: half of 164 KiB, less 1 KiB that
# CUDA reserves (CUDA C++ Programming Guide, compute capability 8.0).
_SHARED_BYTES = 81 * 1024


def check(config: AttentionConfig) -> None:
    """See backend.Kernels."""
    tiles.check(config, max_group=ROWS)
    if _swizzle(config) is None:
        raise Unsupported(
            f"cannot spread pages of {config.page_size} x {config.head_dim} over four warps"
        )


def blocks(config: AttentionConfig) -> Blocks:
    """See backend.Kernels."""
    tokens = ROWS // config.group
    return Blocks(
        decode_tokens=tokens,
        decode_keys=KEYS,
        prefill_tokens=tokens,
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
    shape = (items.shape[0], query_tokens, config.heads)
    parts, sums = _attend(
        q,
        cache,
        page_table,
        items,
        (
            jax.ShapeDtypeStruct((*shape, config.head_dim), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ),
        scale=scale,
        sinks=None,
        config=config,
        target=target,
    )
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
    (out,) = _attend(
        q,
        cache,
        page_table,
        items,
        (jax.ShapeDtypeStruct(q.shape, q.dtype),),
        scale=scale,
        sinks=sinks,
        config=config,
        target=target,
    )
    return out


def _attend(
    q: jax.Array,
    cache: jax.Array,
    page_table: jax.Array,
    items: jax.Array,
    out_type: tuple[jax.ShapeDtypeStruct, ...],
    *,
    scale: float,
    sinks: jax.Array | None,
    config: AttentionConfig,
    target: Target,
) -> tuple[jax.Array, ...]:
    """Compute the items. Returns partial results and sums if `out_type` has two, else results."""
    swizzle = _swizzle(config)
    assert swizzle is not None, f"check refuses {config}"
    params = KernelParams(
        config=config,
        scale=scale,
        is_decode=len(out_type) == 2,
        is_simulated=target.is_simulated,
        num_stages=_num_stages(config),
        swizzle=swizzle,
    )

    def body(*refs: Any, **scratch: Any) -> None:
        run(params, refs, scratch)

    kernel = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=_scratch(params, out_type[0].dtype),
        grid=(items.shape[0], config.kv_heads),
        grid_names=("item", "kv_head"),
        kernel_name=f"paged_attention_{'decode' if params.is_decode else 'prefill'}_sm80",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            reduction_scratch_bytes=0,  # each row is in one warp
        ),
        interpret=interpreter(target),
    )
    # cp.async reads all rows of a tile, including those after the last one.
    folded = tiles.fold(q, config.kv_heads, padding=ROWS)
    of_rows = () if sinks is None else (tiles.fold_sinks(sinks, config.kv_heads, ROWS),)
    result: tuple[jax.Array, ...] = kernel(folded, cache, page_table, items, *of_rows)
    return result


def _scratch(params: KernelParams, out_dtype: DTypeLike) -> dict[str, Any]:
    head_dim, dtype = params.config.head_dim, params.config.dtype
    transforms = tiles.transforms(params.swizzle)
    ring = plgpu.SMEM((params.num_stages, KEYS, head_dim), dtype, transforms=transforms)
    scratch: dict[str, Any] = {
        "queries": plgpu.SMEM((ROWS, head_dim), dtype, transforms=transforms),
        # The result reuses the memory of the tiles.
        "ring_or_result": plgpu.RefUnion(
            (ring, ring),
            (plgpu.SMEM((ROWS, head_dim), out_dtype), plgpu.SMEM((ROWS,), jnp.float32)),
        ),
    }
    if params.is_simulated:
        boxes = 2 * max(1, KEYS // params.config.page_size)
        scratch["queries_landed"] = plgpu.Barrier()
        scratch["tile_landed"] = plgpu.Barrier(num_arrivals=boxes, num_barriers=params.num_stages)
    return scratch


def _swizzle(config: AttentionConfig) -> int | None:
    """Return the swizzle of shared memory in bytes; None if no swizzle fits.

    Wide columns cost registers, so the swizzle should be small. But a copy gives each warp the same
    number of tiles of 8 rows by `swizzle` bytes (tiled_copy_smem_gmem_layout in
    jax/experimental/mosaic/gpu/fragmented_array.py of jax 0.11.2), so a box of few rows needs
    enough columns for four warps.
    """
    warps_by_row = math.gcd(4, min(KEYS, config.page_size) // 8)
    for swizzle in (64, 32):
        columns, rest = divmod(2 * config.head_dim, swizzle)
        if rest == 0 and columns % (4 // warps_by_row) == 0:
            return swizzle
    return None


def _num_stages(config: AttentionConfig) -> int:
    """Return the number of tiles in the ring buffer, so that two thread blocks fit on a core."""
    row = 2 * config.head_dim
    return max(2, min(4, (_SHARED_BYTES - ROWS * row) // (2 * KEYS * row)))
