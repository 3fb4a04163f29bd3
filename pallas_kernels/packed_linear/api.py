"""Products with matrices that are laid out once, as a processor reads them.

XLA's libraries for CPUs lay a matrix out anew for every product, which pays from some hundred rows
on. An engine multiplies a few rows by the same weights all day. linear.c is what reads the layout.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.native.library import register
from pallas_kernels.targets import Target

# What panels hold, in the order of linear.c, and the bytes of such a number.
KINDS = {"float32": 4, "bfloat16": 2, "int8": 1}

_PANEL = 32  # output channels
SOURCE = Path(__file__).with_name("linear.c")
FUNCTIONS = ("packed_linear_multiply", "packed_linear_pack", "packed_linear_take")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["panels"],
    meta_fields=["inputs", "channels", "kind", "dtype"],
)
@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of linear.c's panels. A pytree with one leaf, which only linear.c understands.

    panels: uint8[num_panels, bytes], or a description of it before it exists. inputs: sizes of the
    axes that products sum over. channels: of those that they keep. kind: what the panels hold, one
    of KINDS. dtype: of the numbers that these stand for.
    """

    panels: Any
    inputs: tuple[int, ...]
    channels: tuple[int, ...]
    kind: str
    dtype: str

    @property
    def size(self) -> int:
        """How many numbers the matrix has."""
        return prod(self.inputs) * prod(self.channels)

    def __getitem__(self, index: EllipsisType) -> "PackedMatrix":
        """Return the matrix itself, as `array[...]` does."""
        assert index is ..., "a packed matrix has no parts"
        return self


def check(target: Target, kind: DTypeLike) -> None:
    """Raise Unsupported, with the reason, where packed matrices of this kind cannot be used."""
    if target.platform != "cpu":
        raise Unsupported(f"needs a CPU, got {target.name}")
    name = jnp.dtype(kind).name
    if name not in KINDS:
        raise Unsupported(f"multiplies by {', '.join(KINDS)}, not by {name}")
    register(SOURCE, FUNCTIONS)


def packed_spec(
    inputs: tuple[int, ...], channels: tuple[int, ...], *, kind: str, dtype: DTypeLike
) -> PackedMatrix:
    """Describe a packed matrix before it exists; arguments as PackedMatrix has them."""
    num_inputs = prod(inputs)
    if kind == "int8":
        # Four inputs lie side by side; scales and int32 sums come first.
        num_bytes = _PANEL * (-(-num_inputs // 4) * 4 + 8)
    else:
        num_bytes = _PANEL * num_inputs * KINDS[kind]
    shape = (-(-prod(channels) // _PANEL), num_bytes)
    panels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return PackedMatrix(panels, inputs, channels, kind, jnp.dtype(dtype).name)


def pack(
    matrix: Array,
    summed: tuple[int, ...],
    *,
    scales: Float[Array, "..."] | None = None,
    dtype: DTypeLike,
) -> PackedMatrix:
    """Lay out a matrix for products; `check` tells whether it can be.

    matrix: float32, bfloat16, or int8 with float32 scales of the axes that are kept, in order.
    summed: the axes that products sum over, which are its first ones, or its last. dtype: of the
    numbers that these stand for.
    """
    first = summed == tuple(range(len(summed)))
    assert first or summed == tuple(range(matrix.ndim - len(summed), matrix.ndim)), summed
    kept = tuple(axis for axis in range(matrix.ndim) if axis not in summed)
    inputs, channels = (tuple(matrix.shape[axis] for axis in axes) for axes in (summed, kept))
    kind = matrix.dtype.name
    spec = packed_spec(inputs, channels, kind=kind, dtype=dtype)
    description: jax.ShapeDtypeStruct = spec.panels
    call = jax.ffi.ffi_call("packed_linear_pack", description)
    panels = call(
        matrix.reshape((prod(inputs), -1) if first else (-1, prod(inputs))),
        jnp.zeros(0, jnp.float32) if scales is None else scales.reshape(-1),
        kind=_number(kind),
        channels_first=np.int32(not first),
    )
    return PackedMatrix(panels, inputs, channels, kind, spec.dtype)


def multiply(
    x: Float[Array, "rows *inputs"],
    matrix: PackedMatrix,
    *,
    num_rows: Int[Array, ""] | None = None,
) -> Float[Array, "rows *kept"]:
    """Multiply rows by a matrix, in float32.

    num_rows: how many rows there are; those behind them are padding, and come back as zeros.

    With int8, each row is rounded to int8 as well, so that its greatest number becomes 127, and
    products are exact in int32. A row that is not finite gives a result that is not.
    """
    assert x.shape[1:] == matrix.inputs, (x.shape, matrix.inputs)
    most_rows = x.shape[0]
    result = jax.ShapeDtypeStruct((most_rows, prod(matrix.channels)), jnp.float32)
    call = jax.ffi.ffi_call("packed_linear_multiply", result)
    with jax.named_scope("packed_linear"):
        product: Array = call(
            x.reshape(most_rows, -1).astype(jnp.float32),
            matrix.panels,
            jnp.asarray(most_rows if num_rows is None else num_rows, jnp.int32),
            kind=_number(matrix.kind),
        )
    return product.reshape(most_rows, *matrix.channels)


def take(matrix: PackedMatrix, indices: Int[Array, " rows"]) -> Float[Array, "rows inputs"]:
    """Return what a table has of some channels, in its dtype; NaN for an index outside of it."""
    (num_inputs,), (num_channels,) = matrix.inputs, matrix.channels
    result = jax.ShapeDtypeStruct((indices.shape[0], num_inputs), jnp.float32)
    is_inside = (indices >= 0) & (indices < num_channels)
    call = jax.ffi.ffi_call("packed_linear_take", result)
    rows = call(
        matrix.panels,
        jnp.where(is_inside, indices, 0).astype(jnp.int32),
        kind=_number(matrix.kind),
    )
    return jnp.where(is_inside[:, None], rows, jnp.nan).astype(matrix.dtype)


def _number(kind: str) -> np.int32:
    return np.int32(list(KINDS).index(kind))
