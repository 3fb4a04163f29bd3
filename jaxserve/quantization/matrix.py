"""Interface of weight matrices, independent of their format."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from types import EllipsisType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int32

from jaxserve.errors import ConfigError
from jaxserve.parallel.sharding import ShardingPlan
from pallas_kernels.grouped_matmul import grouped_matmul


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Live rows and adapters of a batch of activations.

    A matmul may skip padding rows and return zeros for them, so that a program compiled for many
    rows takes only the time of the live ones.
    """

    num_rows: Int32[Array, ""] | None = None  # live rows, padding follows; None: all are live
    adapter_ids: Int32[Array, " rows"] | None = None  # adapter of each row; None: no adapters


ALL_ROWS = Rows()


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """Names and lengths of a parameter's axes.

    stacked: leading axes along which independent matrices are stacked. summed: the axes that
    matmuls contract, either the first or the last of the others; empty for a parameter that is
    always an array. dtype: dtype of the parameter; None for that of the layout.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    summed: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    dtype: str | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each axis."""
        return dict(zip(self.axes, self.shape, strict=True))

    @property
    def kept(self) -> tuple[str, ...]:
        """Axes that matmuls do not contract: stacked axes and output channels."""
        return tuple(word for word in self.axes if word not in self.summed)

    @property
    def channels(self) -> tuple[str, ...]:
        """Output channels of each matrix."""
        return tuple(word for word in self.kept if word not in self.stacked)

    @property
    def summed_dims(self) -> tuple[int, ...]:
        """Positions of the axes that matmuls contract."""
        return tuple(self.axes.index(word) for word in self.summed)

    def sizes_of(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """Return the lengths of some axes."""
        return tuple(self.sizes[word] for word in words)


class Matrix(ABC):
    """Weight matrix: a pytree that replaces an array.

    Its leaves are arrays, or jax.ShapeDtypeStructs before allocation.
    """

    @abstractmethod
    def einsum(
        self, spec: str, x: Float[Array, "..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Contract activations with the matrix; see `layers.linear.einsum`."""

    @abstractmethod
    def take(self, indices: Int[Array, " rows"], rows: Rows) -> Float[Array, "rows inputs"]:
        """Return rows of a table; see `layers.embed.embed`."""

    def grouped(
        self, x: Float[Array, "rows inputs"], sizes: Int[Array, " matrices"], *, dtype: DTypeLike
    ) -> Float[Array, "rows *channels"]:
        """Multiply groups of rows by the matrices of a stack; see `layers.linear.grouped`.

        Raises ConfigError, as `partition`, for a format that has no stacks.
        """
        del x, sizes, dtype
        raise ConfigError(f"{type(self).__name__} does not support mixtures of experts")

    def partition(self, spec: WeightSpec, sharding: ShardingPlan) -> "Matrix":
        """Return the matrix with partition specs in place of arrays, for `shard_map`."""
        del spec, sharding
        raise ConfigError(f"{type(self).__name__} does not support mixtures of experts")

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """Number of weights on one device."""

    @property
    def num_bytes(self) -> int:
        """Bytes on one device."""
        leaves = jax.tree.leaves(self)
        return sum(shard_size(leaf) * np.dtype(leaf.dtype).itemsize for leaf in leaves)

    def __getitem__(self, index: EllipsisType) -> Self:
        """Return the matrix itself, as `array[...]` does."""
        assert index is ..., "a quantized matrix can only be indexed with ..."
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArrayMatrix(Matrix):
    """Plain array as a Matrix; parameter trees contain the array itself."""

    array: Any

    def einsum(
        self, spec: str, x: Float[Array, "..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "..."]:
        """Multiply with XLA; narrow types accumulate in float32."""
        del rows  # XLA also computes padding
        return jnp.einsum(spec, x, self.array, preferred_element_type=dtype)

    def take(self, indices: Int[Array, " rows"], rows: Rows) -> Float[Array, "rows inputs"]:
        """Gather rows."""
        del rows
        return jnp.take(self.array, indices, axis=0, mode="fill", fill_value=jnp.nan)

    def grouped(
        self, x: Float[Array, "rows inputs"], sizes: Int[Array, " matrices"], *, dtype: DTypeLike
    ) -> Float[Array, "rows *channels"]:
        """Multiply with the grouped kernel of the platform."""
        return grouped_product(x, self.array, sizes, dtype=dtype)

    @property
    def num_weights(self) -> int:
        """Number of weights on one device."""
        return shard_size(self.array)


def grouped_product(
    x: Array, stack: Array, sizes: Int[Array, " matrices"], *, dtype: DTypeLike
) -> Array:
    """Return the grouped matmul of rows and arrays [matrices, inputs, *channels]."""
    num_matrices, num_inputs, *channels = stack.shape
    flat = stack.reshape(num_matrices, num_inputs, -1)
    return grouped_matmul(x, flat, sizes, dtype=dtype).reshape(x.shape[0], *channels)


def as_matrix(weight: Any) -> Matrix:
    """Return a leaf of a parameter tree as a Matrix."""
    return weight if isinstance(weight, Matrix) else ArrayMatrix(weight)


def partition(weight: Any, spec: WeightSpec, sharding: ShardingPlan) -> Any:
    """Return a leaf of a parameter tree with partition specs in place of arrays."""
    if isinstance(weight, Matrix):
        return weight.partition(spec, sharding)
    return sharding.places(*spec.axes)


def matrices(params: Any) -> list[Matrix]:
    """Return every matrix of a parameter tree; vectors are left out."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Matrix))
    return [as_matrix(leaf) for leaf in leaves if isinstance(leaf, Matrix) or leaf.ndim > 1]


def shard_size(leaf: Any) -> int:
    """Return the number of elements of an (abstract) array on one device."""
    sharding = getattr(leaf, "sharding", None)
    return prod(leaf.shape if sharding is None else sharding.shard_shape(leaf.shape))
