"""8-bit weights and dynamically quantized activations (W8A8), quantized at load.

Weights have one scale per output channel, activations one per token, computed at run time. Products
are exact in int32 (Dettmers et al., "LLM.int8()", 2022, arXiv:2208.07339, without its outlier
decomposition). On a CPU with VNNI this is three to four times as fast as float32, with a quarter of
the memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8

from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization import packed
from jaxserve.quantization.layout import Arrays, WeightLayout, shardings_of
from jaxserve.quantization.matrix import Matrix, Rows, WeightSpec, grouped_product, shard_size

# With fewer rows XLA for CPUs does not vectorize int8 matmuls: 8 rows take a fifth of the time of
# 1.
_LEAST_ROWS = 8
_LARGEST = 127.0


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Int8Matrix(Matrix):
    """Matrix of int8 values with a scale per output channel."""

    values: Any  # int8, in the layout of the matrix
    scales: Any  # float32, the axes that matmuls do not contract, in order
    dtype: str  # dtype of the dequantized values

    def einsum(
        self, spec: str, x: Float[Array, "tokens ..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "tokens ..."]:
        """Multiply activations, whose first axis is tokens.

        Tokens with non-finite values give non-finite results.
        """
        del rows
        num_tokens = x.shape[0]
        if num_tokens < _LEAST_ROWS:
            x = jnp.pad(x, [(0, _LEAST_ROWS - num_tokens)] + [(0, 0)] * (x.ndim - 1))
        rounded, scales = _rounded(x)
        product = jnp.einsum(spec, rounded, self.values, preferred_element_type=jnp.int32)
        scales = scales.reshape(-1, *[1] * (product.ndim - 1))
        result: Array = product.astype(jnp.float32) * scales * self.scales
        return result[:num_tokens].astype(dtype)

    def grouped(
        self, x: Float[Array, "rows inputs"], sizes: Int[Array, " matrices"], *, dtype: DTypeLike
    ) -> Float[Array, "rows *channels"]:
        """Multiply groups of rows as `einsum` does."""
        rounded, scales = _rounded(x)
        product = grouped_product(rounded, self.values, sizes, dtype=jnp.int32)
        own = jnp.repeat(self.scales, sizes, axis=0, total_repeat_length=x.shape[0])
        scales = scales.reshape(-1, *[1] * (product.ndim - 1))
        return (product.astype(jnp.float32) * scales * own).astype(dtype)

    def partition(self, spec: WeightSpec, sharding: ShardingPlan) -> "Int8Matrix":
        """Return the specs of values and scales."""
        values, scales = sharding.places(*spec.axes), sharding.places(*spec.kept)
        return Int8Matrix(values, scales, self.dtype)

    def take(self, indices: Int[Array, " tokens"], rows: Rows) -> Float[Array, "tokens embed"]:
        """Return dequantized rows of a table; NaN for indices out of range."""
        del rows
        found: Int8[Array, "tokens embed"] = jnp.take(self.values, indices, axis=0, mode="clip")
        scales = jnp.take(self.scales, indices, mode="fill", fill_value=jnp.nan)
        result: Array = found.astype(jnp.float32) * scales[:, None]
        return result.astype(jnp.dtype(self.dtype))

    @property
    def num_weights(self) -> int:
        """Number of weights on one device."""
        return shard_size(self.values)


def _rounded(x: Array) -> tuple[Int8[Array, "rows ..."], Float[Array, "rows ..."]]:
    """Return rows rounded to int8, and the scale of each."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True) / _LARGEST
    return jnp.round(x / jnp.where(scales == 0, 1.0, scales)).astype(jnp.int8), scales


def quantize(weight: Float[Array, "..."], summed: tuple[int, ...]) -> Int8Matrix:
    """Quantize a matrix to int8. summed: the axes that matmuls contract.

    The largest magnitude of each channel maps to 127. The error of a value is at most half its
    scale.
    """
    wide = weight.astype(jnp.float32)
    scales = jnp.max(jnp.abs(wide), axis=summed, keepdims=True) / _LARGEST
    values = jnp.round(wide / jnp.where(scales == 0, 1.0, scales)).astype(jnp.int8)
    return Int8Matrix(values, jnp.squeeze(scales, summed), weight.dtype.name)


class Int8Method(Arrays):
    """Quantizes floating-point tensors to int8."""

    def describe(self, spec: WeightSpec, layout: WeightLayout) -> Matrix:
        """Describe the quantized matrix."""
        if layout.packed is not None:
            return packed.describe(spec, kind="int8", dtype=layout.dtype, sharding=layout.sharding)
        return Int8Matrix(
            layout.array(spec.axes, spec.shape, jnp.int8),
            layout.array(spec.kept, spec.sizes_of(spec.kept), jnp.float32),
            layout.dtype,
        )

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: WeightLayout
    ) -> Matrix:
        """Quantize a matrix on its devices."""
        if layout.packed is None:
            return _quantizing(self, spec, layout)(tensors["weight"])
        matrix = _quantizing(self, spec, layout.plain)(tensors["weight"])
        return packed.pack(
            matrix.values,
            spec,
            scales=matrix.scales,
            dtype=layout.dtype,
            sharding=layout.sharding,
        )


METHOD = Int8Method()


@lru_cache(maxsize=64)
def _quantizing(
    method: Int8Method, spec: WeightSpec, layout: WeightLayout
) -> Callable[[Array], Int8Matrix]:
    """Return the compiled quantization for matrices with the same layout."""
    return jax.jit(
        partial(quantize, summed=spec.summed_dims),
        out_shardings=shardings_of(method.describe(spec, layout)),
    )
