"""Second kernel of split-KV decoding on NVIDIA GPUs: merge the partial results of each row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from pallas_kernels.paged_attention.mosaic_gpu.work import END_ITEM, FIRST_ITEM, QUERY
from pallas_kernels.paged_attention.reference import MASKED
from pallas_kernels.simulation import detect_races
from pallas_kernels.targets import Target

# Parts that are read at once, to have several reads in flight.
_UNROLL = 8

# Numbers of a part that a thread block reads: 8 per thread, so that _UNROLL parts fit.
_BLOCK = 1024

_WARPS, _LANES = 4, 32


def interpreter(target: Target) -> plgpu.InterpretGPUParams | None:
    """Return the interpreter's parameters for a simulated target; None to compile kernels.

    A simulated thread block blocks one thread of XLA's CPU client per warpgroup, up to three. The
    client has one thread per core or device: on two cores, set `jax_num_cpu_devices` to 4 to avoid
    a deadlock.
    """
    if not target.is_simulated:
        return None
    return plgpu.InterpretGPUParams(detect_races=detect_races.get())


def combine(
    parts: Float[Array, "items query_tokens heads head_dim"],
    sums: Float[Array, "items query_tokens heads"],
    row_items: Int32[Array, "tokens 3"],
    *,
    sinks: Float[Array, " heads"] | None,
    dtype: DTypeLike,
    target: Target,
) -> Float[Array, "tokens heads head_dim"]:
    """Merge the parts of each row, weighted by their sums; rows without parts are zeros.

    parts: float32 partial results. sums: float32 base-2 logarithms of their denominators.
    row_items: items of each row, see work.py. A sink counts as another part with value 0.
    """
    num_tokens, (_, _, heads, head_dim) = row_items.shape[0], parts.shape
    block = _head_block(heads, head_dim)
    layout = row_layout(block, head_dim)
    per_head = layout.reduce(1)

    def spread(x: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(x, (block, head_dim), [0])

    def body(*refs: Any) -> None:
        parts_ref, sums_ref, rows_ref, *sinks_ref, out_ref = refs
        row = lax.axis_index("row")
        which = pl.ds(lax.axis_index("head_block") * block, block)
        first, end = rows_ref[row, FIRST_ITEM], rows_ref[row, END_ITEM]
        query = rows_ref[row, QUERY]

        def add(item: jax.Array, count: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            maximum, total, out = carry
            logs = [
                plgpu.load(sums_ref.at[item + i, query, which], layout=per_head, optimized=False)
                for i in range(count)
            ]
            values = [
                plgpu.load(parts_ref.at[item + i, query, which], layout=layout, optimized=False)
                for i in range(count)
            ]
            new_maximum = maximum
            for log in logs:
                new_maximum = jnp.maximum(new_maximum, log)
            decay = jnp.exp2(maximum - new_maximum)
            total, out = total * decay, out * spread(decay)
            for log, value in zip(logs, values, strict=True):
                weight = jnp.exp2(log - new_maximum)
                total, out = total + weight, out + value * spread(weight)
            return new_maximum, total, out

        if sinks_ref:
            sink = plgpu.load(sinks_ref[0].at[which], layout=per_head, optimized=False)
            maximum, total = sink, jnp.ones((block,), jnp.float32)
        else:
            maximum = jnp.full((block,), MASKED, jnp.float32)
            total = jnp.zeros((block,), jnp.float32)
        carry = (
            plgpu.layout_cast(maximum, per_head),
            plgpu.layout_cast(total, per_head),
            plgpu.layout_cast(jnp.zeros((block, head_dim), jnp.float32), layout),
        )
        bulk = (end - first) // _UNROLL
        carry = lax.fori_loop(
            0, bulk, lambda i, carry: add(first + i * _UNROLL, _UNROLL, carry), carry
        )
        _, total, out = lax.fori_loop(
            first + bulk * _UNROLL, end, lambda i, carry: add(i, 1, carry), carry
        )
        total = jnp.where(total > 0, total, 1.0)
        out_ref[row, which] = (out / spread(total)).astype(dtype)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((num_tokens, heads, head_dim), dtype),
        grid=(num_tokens, heads // block),
        grid_names=("row", "head_block"),
        kernel_name="paged_attention_combine",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpreter(target),
    )
    # Converted to base 2 outside of the kernel. Inside, LLVM would contract the product and
    # `maximum - new_maximum` into an FMA, and a large sink would cause a rounding error in the
    # exponent.
    base_2 = () if sinks is None else (sinks * math.log2(math.e),)
    out: jax.Array = kernel(parts, sums, row_items, *base_2)
    return out


def _head_block(heads: int, head_dim: int) -> int:
    """Return the heads per thread block: a divisor of all, preferably one that fills all warps."""
    sizes = [n for n in range(1, heads + 1) if heads % n == 0 and n * head_dim <= _BLOCK]
    return max(sizes, key=lambda n: (math.gcd(n, _WARPS), n))


def row_layout(rows: int, columns: int) -> Any:
    """Return a layout of [rows, columns] in a warpgroup: rows over warps, columns over lanes."""
    warps = math.gcd(rows, _WARPS)
    lanes = math.gcd(columns, _LANES)
    vector = math.gcd(columns // lanes, 4)  # at most 16 bytes
    replicated_warps = () if warps == _WARPS else (plgpu.Replicated(_WARPS // warps),)
    replicated_lanes = () if lanes == _LANES else (plgpu.Replicated(_LANES // lanes),)
    return plgpu.Layout.TILED(
        plgpu.Tiling(((warps, lanes * vector), (vector,))),
        warp_dims=((-3,) if warps > 1 else ()) + replicated_warps,
        lane_dims=(-2, *replicated_lanes),
        vector_dim=-1,
    )
