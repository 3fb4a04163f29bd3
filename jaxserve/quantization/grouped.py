"""Matrices of 4- or 8-bit codes with a scale for each group of inputs.

All formats of quantized checkpoints become this one layout when they are loaded. A number is
`(code - zero) * scale`, with the code's value from `CODES`. Products convert one tile of the matrix
at a time, so a converted copy of the whole matrix never exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization.matrix import Matrix, Rows, WeightSpec, grouped_product, shard_size
from jaxserve.quantization.packed import is_product
from pallas_kernels.packed_linear.codes import CODES, Code

# Dtypes of scales. E8M0, a power of two with bias 127, is kept as uint8.
E8M0 = "e8m0"
SCALES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "e4m3": "float8_e4m3fn",
    E8M0: "uint8",
}

# Most numbers of a tile, and least tiles of a matrix.
_TILE = 1 << 20
_LEAST_TILES = 4


@dataclass(frozen=True, slots=True)
class Groups:
    """Number format of a matrix.

    code: one of CODES. size: inputs of a group; None for one group of all. scale: one of SCALES.
    has_zeros: whether groups have zero points. outer: whether each channel has a float32 factor by
    which its scales are multiplied or divided. has_order: whether inputs are stored in another
    order, in which groups are contiguous. has_factors: whether inputs are multiplied by factors of
    their own before a product.
    """

    code: str
    size: int | None
    scale: str
    has_zeros: bool = False
    outer: Literal["multiply", "divide"] | None = None
    has_order: bool = False
    has_factors: bool = False

    @property
    def of_code(self) -> Code:
        """The code's values."""
        return CODES[self.code]

    @property
    def zero_dtype(self) -> str:
        """Dtype of zero points, which reach 16 with 4-bit codes and 256 with 8-bit codes."""
        return "uint8" if self.of_code.bits == 4 else "int16"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales", "zeros", "outer", "order", "factors"],
    meta_fields=["groups", "dtype", "num_stacked", "tiles_channels"],
)
@dataclass(frozen=True)
class GroupedMatrix(Matrix):
    """Codes and scales of a matrix, or of a stack of matrices.

    tiles_channels: whether products go through the matrix by tiles of channels, because its inputs
    are sharded; else by tiles of inputs. dtype: dtype of the numbers that it stands for.
    """

    codes: Any  # [*stacked, inputs, *channels]; 4 bits: uint8, two inputs a byte, low bits first
    scales: Any  # [*stacked, groups, *channels]
    zeros: Any  # as scales, or None
    outer: Any  # float32[*stacked, *channels], or None
    order: Any  # int32[inputs]: number of the input at each position, or None
    factors: Any  # float32[inputs], or None
    groups: Groups
    dtype: str
    num_stacked: int = 0
    tiles_channels: bool = False

    def einsum(
        self, spec: str, x: Float[Array, "tokens ..."], rows: Rows, *, dtype: DTypeLike
    ) -> Float[Array, "tokens ..."]:
        """Multiply activations, whose first axis is tokens; sums are float32."""
        del rows
        assert is_product(spec), f"quantized matrices cannot compute {spec}"
        x = self._inputs(x.reshape(x.shape[0], -1))
        multiply = partial(jnp.tensordot, axes=1, preferred_element_type=jnp.float32)
        run = self._by_channels if self.tiles_channels else self._by_inputs
        return run(x, multiply).astype(dtype)

    def grouped(
        self, x: Float[Array, "rows inputs"], sizes: Int[Array, " matrices"], *, dtype: DTypeLike
    ) -> Float[Array, "rows *channels"]:
        """Multiply groups of rows, by a tile of all matrices at a time."""

        def multiply(part: Array, tile: Array) -> Array:
            return grouped_product(part, tile, sizes, dtype=jnp.float32)

        return self._by_inputs(self._inputs(x), multiply).astype(dtype)

    def partition(self, spec: WeightSpec, sharding: ShardingPlan) -> "GroupedMatrix":
        """Return the specs of all arrays."""
        stacked, inputs = spec.stacked, spec.summed[0]
        places = sharding.places
        kept = places(*stacked, inputs, *spec.channels)
        # One group of all inputs belongs to every shard of them.
        of_groups = places(*stacked, "" if self._num_groups == 1 else inputs, *spec.channels)

        def where(leaf: Any, place: Any) -> Any:
            return None if leaf is None else place

        return GroupedMatrix(
            kept,
            of_groups,
            where(self.zeros, of_groups),
            where(self.outer, places(*stacked, *spec.channels)),
            None,  # stacks have neither an order nor factors
            None,
            self.groups,
            self.dtype,
            self.num_stacked,
            self.tiles_channels,
        )

    def take(self, indices: Int[Array, " tokens"], rows: Rows) -> Float[Array, "tokens embed"]:
        """Return rows of a table; NaN for indices out of range."""
        del rows
        assert self.order is None, "a table has no order of inputs"
        parts: list[Any] = [
            None if leaf is None else jnp.take(leaf, indices, axis=-1, mode="clip")
            for leaf in (self.codes, self.scales, self.zeros, self.outer)
        ]
        found = self._numbers(*parts)
        if self.factors is not None:
            found *= self.factors[:, None]
        is_inside = (indices >= 0) & (indices < self.codes.shape[-1])
        return jnp.where(is_inside, found, jnp.nan).T.astype(self.dtype)

    def dequantized(self) -> Float[Array, "..."]:
        """Return all numbers as float32 [*stacked, inputs, *channels], for tests and tools."""
        found = self._numbers(self.codes, self.scales, self.zeros, self.outer)
        if self.order is not None:
            found = jnp.take(found, jnp.argsort(self.order), axis=0)
        if self.factors is not None:
            found *= self.factors.reshape(-1, *[1] * (found.ndim - 1))
        return found

    @property
    def num_weights(self) -> int:
        """Number of weights on one device."""
        return shard_size(self.codes) * 8 // self.groups.of_code.bits

    @property
    def _num_groups(self) -> int:
        num_groups: int = self.scales.shape[self.num_stacked]
        return num_groups

    def _inputs(self, x: Array) -> Array:
        """Return rows with their factors, in the order of the matrix."""
        if self.factors is not None:
            x = (x * self.factors).astype(x.dtype)
        return x if self.order is None else jnp.take(x, self.order, axis=1)

    def _numbers(self, codes: Array, scales: Array, zeros: Any, outer: Any) -> Array:
        """Return the float32 numbers of a part of the matrix."""
        axis = self.num_stacked
        values = _values(codes, self.groups.of_code, axis)
        wide = decoded(scales, self.groups.scale)
        if outer is not None:
            factor = jnp.expand_dims(outer, axis)
            wide = wide * factor if self.groups.outer == "multiply" else wide / factor
        num_groups = scales.shape[axis]
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        values = values.reshape(*before, num_groups, -1, *after)
        if zeros is not None:
            values -= jnp.expand_dims(zeros.astype(jnp.float32), axis + 1)
        return (values * jnp.expand_dims(wide, axis + 1)).reshape(*before, -1, *after)

    def _by_inputs(self, x: Array, multiply: Callable[[Array, Array], Array]) -> Array:
        """Sum the products of tiles of inputs."""
        axis, per_code = self.num_stacked, 8 // self.groups.of_code.bits
        stored = self.codes.shape[axis]
        units = self._num_groups if self._num_groups > 1 else stored
        num_tiles = _num_tiles(units, self.codes.size * per_code)

        def part(leaf: Any, i: Array) -> Any:
            if leaf is None or leaf.shape[axis] == 1:
                return leaf
            size = leaf.shape[axis] // num_tiles
            return lax.dynamic_slice_in_dim(leaf, i * size, size, axis)

        def product(i: Array) -> Array:
            codes, scales, zeros = (part(leaf, i) for leaf in (self.codes, self.scales, self.zeros))
            tile = self._numbers(codes, scales, zeros, self.outer).astype(x.dtype)
            size = stored * per_code // num_tiles
            return multiply(lax.dynamic_slice_in_dim(x, i * size, size, 1), tile)

        channels = self.codes.shape[axis + 1 :]
        zeros = jnp.zeros((x.shape[0], *channels), jnp.float32)
        total: Array = lax.fori_loop(0, num_tiles, lambda i, total: total + product(i), zeros)
        return total

    def _by_channels(self, x: Array, multiply: Callable[[Array, Array], Array]) -> Array:
        """Join the products of tiles of the only axis of channels."""
        num_channels = self.codes.shape[1]
        num_tiles = _num_tiles(num_channels, self.codes.size * 8 // self.groups.of_code.bits)
        size = num_channels // num_tiles

        def product(i: Array, joined: Array) -> Array:
            own: list[Any] = [
                None if leaf is None else lax.dynamic_slice_in_dim(leaf, i * size, size, -1)
                for leaf in (self.codes, self.scales, self.zeros, self.outer)
            ]
            tile = multiply(x, self._numbers(*own).astype(x.dtype))
            return lax.dynamic_update_slice_in_dim(joined, tile, i * size, 1)

        empty = jnp.zeros((x.shape[0], num_channels), jnp.float32)
        whole: Array = lax.fori_loop(0, num_tiles, product, empty)
        return whole


def _num_tiles(units: int, size: int) -> int:
    """Return the number of tiles: a divisor of `units`, for tiles of at most _TILE numbers."""
    wanted = min(max(_LEAST_TILES, -(-size // _TILE)), units)
    return next(count for count in range(wanted, units + 1) if units % count == 0)


def _values(codes: Array, code: Code, axis: int) -> Float[Array, "..."]:
    """Return the values of codes, those of 4 bits unpacked along `axis`."""
    if not code.table:
        return codes.astype(jnp.float32)
    pair = jnp.stack([codes & 15, codes >> 4], axis=axis + 1)
    unpacked = pair.reshape(*codes.shape[:axis], -1, *codes.shape[axis + 1 :])
    return jnp.take(jnp.array(code.table, jnp.float32), unpacked.astype(jnp.int32))


def decoded(scales: Array, kind: str) -> Float[Array, "..."]:
    """Return scales as float32."""
    if kind != E8M0:
        return scales.astype(jnp.float32)
    exponents = scales.astype(jnp.uint32)  # 0 is 2^-127, a subnormal number
    bits = jnp.where(exponents == 0, 1 << 22, exponents << 23)
    return lax.bitcast_convert_type(bits, jnp.float32)
