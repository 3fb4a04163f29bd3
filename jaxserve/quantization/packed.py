"""Matrices in the layout of the C kernels for CPUs (`pallas_kernels.packed_linear`)."""

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

# Kinds of panels that hold the numbers of an array as they are, rounded at most.
FLOATS = ("float32", "bfloat16")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed(Matrix):
    """A matrix that is packed for the products of this CPU."""

    panels: Any  # packed_linear.PackedMatrix

    def einsum(
        self, spec: str, x: Float[Array, "..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Multiply live rows in float32; padding rows come back as zeros."""
        assert _is_product(spec), f"packed matrices cannot compute {spec}"
        return packed_linear.multiply(x, self.panels, num_rows=rows.num_rows).astype(dtype)

    def take(self, indices: Int[Array, " rows"], rows: Rows) -> Float[Array, "rows inputs"]:
        """Unpack rows of a table."""
        del rows
        return packed_linear.take(self.panels, indices)

    @property
    def num_weights(self) -> int:
        """Weights of the matrix; packed matrices are not sharded."""
        size: int = self.panels.size
        return size


def describe(
    spec: WeightSpec, *, kind: str, dtype: DTypeLike, sharding: ShardingPlan | None
) -> Packed:
    """Describe a packed matrix before it exists. kind: what panels hold (packed_linear.KINDS)."""
    inputs, channels = spec.sizes_of(spec.summed), spec.sizes_of(spec.kept)
    packed = packed_linear.packed_spec(inputs, channels, kind=kind, dtype=dtype)
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
    """Pack a matrix. scales: float32 of the kept axes, of int8 values."""
    described = describe(spec, kind=values.dtype.name, dtype=dtype, sharding=sharding)
    place = described.panels.panels.sharding
    packed: Packed = _packing(spec.summed_dims, jnp.dtype(dtype).name, place)(values, scales)
    return packed


@lru_cache(maxsize=64)
def _packing(summed: tuple[int, ...], dtype: str, place: Any) -> Any:
    """Return the compiled packing of matrices laid out alike."""

    def run(values: Array, scales: Array | None) -> Packed:
        return Packed(packed_linear.pack(values, summed, scales=scales, dtype=dtype))

    return jax.jit(run, out_shardings=place)


def _is_product(spec: str) -> bool:
    """Whether rows and kept axes come out in the order that panels have.

    Panels know only which axes are summed over: another order would pass silently.
    """
    operands, result = spec.split("->")
    left, right = operands.split(",")
    summed = left[1:]
    kept = right.removeprefix(summed) if right.startswith(summed) else right.removesuffix(summed)
    return sorted(summed + kept) == sorted(right) and result == left[0] + kept
