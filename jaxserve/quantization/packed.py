"""Matrices in the layout of the CPU kernels in C (`pallas_kernels.packed_linear`)."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization.matrix import Matrix, Rows, WeightSpec
from pallas_kernels import packed_linear

# Floating-point kinds, whose values are at most rounded.
FLOATS = ("float32", "bfloat16")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed(Matrix):
    """Matrix packed for the matmul kernels of this CPU."""

    panels: Any  # packed_linear.PackedMatrix

    def einsum(
        self, spec: str, x: Float[Array, "..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Multiply live rows in float32; padding rows are zeros in the result."""
        assert is_product(spec), f"packed matrices cannot compute {spec}"
        return packed_linear.multiply(x, self.panels, num_rows=rows.num_rows).astype(dtype)

    def take(self, indices: Int[Array, " rows"], rows: Rows) -> Float[Array, "rows inputs"]:
        """Unpack rows of a table."""
        del rows
        return packed_linear.take(self.panels, indices)

    def grouped(
        self, x: Float[Array, "rows inputs"], sizes: Int[Array, " matrices"], *, dtype: DTypeLike
    ) -> Float[Array, "rows *channels"]:
        """Multiply in float32."""
        return packed_linear.multiply_groups(x, self.panels, sizes).astype(dtype)

    def partition(self, spec: WeightSpec, sharding: ShardingPlan) -> "Packed":
        """Return the spec of the panels, which are not sharded."""
        del spec
        return Packed(replace(self.panels, panels=sharding.places()))

    @property
    def num_weights(self) -> int:
        """Number of weights; packed matrices are not sharded."""
        size: int = self.panels.size
        return size


def describe(
    spec: WeightSpec, *, kind: str, dtype: DTypeLike, sharding: ShardingPlan | None
) -> Packed:
    """Describe a packed matrix before it exists. kind: one of packed_linear.KINDS."""
    inputs, channels, stacked = map(spec.sizes_of, (spec.summed, spec.channels, spec.stacked))
    packed = packed_linear.packed_spec(inputs, channels, kind=kind, dtype=dtype, stacked=stacked)
    if sharding is None:
        return Packed(packed)
    shape = packed.panels.shape
    place = sharding.sharding(("panels", "panel"), shape)
    panels = jax.ShapeDtypeStruct(shape, packed.panels.dtype, sharding=place)
    return Packed(replace(packed, panels=panels))


def pack(
    values: Array,
    spec: WeightSpec,
    *,
    scales: Float[Array, "..."] | None = None,
    dtype: DTypeLike,
    sharding: ShardingPlan | None,
) -> Packed:
    """Pack a matrix. scales: float32 scales of int8 values, with the kept axes."""
    described = describe(spec, kind=values.dtype.name, dtype=dtype, sharding=sharding)
    place = described.panels.panels.sharding
    packing = _packing(spec.summed_dims, len(spec.stacked), jnp.dtype(dtype).name, place)
    packed: Packed = packing(values, scales)
    return packed


@lru_cache(maxsize=64)
def _packing(summed: tuple[int, ...], num_stacked: int, dtype: str, place: Any) -> Any:
    """Return the compiled packing for matrices with the same layout."""

    def run(values: Array, scales: Array | None) -> Packed:
        return Packed(
            packed_linear.pack(values, summed, scales=scales, dtype=dtype, num_stacked=num_stacked)
        )

    return jax.jit(run, out_shardings=place)


def is_product(spec: str) -> bool:
    """Return whether the result has rows and kept axes in the order of the panels.

    Panels record only which axes are contracted, so another order would give wrong results
    silently.
    """
    operands, result = spec.split("->")
    left, right = operands.split(",")
    summed = left[1:]
    kept = right.removeprefix(summed) if right.startswith(summed) else right.removesuffix(summed)
    return sorted(summed + kept) == sorted(right) and result == left[0] + kept
