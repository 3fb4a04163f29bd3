"""Matrix products with packed weights, on CPUs.

XLA's CPU libraries pack the matrix again for every product, which pays off from about a hundred
rows on. An inference engine multiplies few rows by the same weights again and again, so its weights
are packed once. linear.c implements the packing and the products.
"""

from dataclasses import dataclass, replace
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

# Dtypes of panels, in the order of linear.c, with their size in bytes.
KINDS = {"float32": 4, "bfloat16": 2, "int8": 1}

_PANEL = 32  # output channels
SOURCE = Path(__file__).with_name("linear.c")
FUNCTIONS = ("packed_linear_multiply", "packed_linear_pack", "packed_linear_take")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["panels"],
    meta_fields=["inputs", "channels", "kind", "dtype", "stacked"],
)
@dataclass(frozen=True)
class PackedMatrix:
    """A packed matrix or a stack of them: a pytree with one leaf, whose layout is linear.c's.

    panels: uint8[num_panels, bytes], or its ShapeDtypeStruct. inputs: sizes of the axes that
    products sum over. channels: sizes of the remaining axes. kind: dtype of the panels, one of
    KINDS. dtype: dtype of the matrix that they represent. stacked: sizes of the axes along which
    matrices are stacked, () for a single one.
    """

    panels: Any
    inputs: tuple[int, ...]
    channels: tuple[int, ...]
    kind: str
    dtype: str
    stacked: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements of all matrices."""
        return prod(self.stacked) * prod(self.inputs) * prod(self.channels)

    def __getitem__(self, index: EllipsisType) -> "PackedMatrix":
        """Return the matrix itself; only `matrix[...]` is supported."""
        assert index is ..., "a packed matrix has no parts"
        return self


def check(target: Target, kind: DTypeLike) -> None:
    """Raise Unsupported, with the reason, if `target` cannot use packed matrices of this kind."""
    if target.platform != "cpu":
        raise Unsupported(f"needs a CPU, got {target.name}")
    name = jnp.dtype(kind).name
    if name not in KINDS:
        raise Unsupported(f"multiplies by {', '.join(KINDS)}, not by {name}")
    register(SOURCE, FUNCTIONS)


def packed_spec(
    inputs: tuple[int, ...],
    channels: tuple[int, ...],
    *,
    kind: str,
    dtype: DTypeLike,
    stacked: tuple[int, ...] = (),
) -> PackedMatrix:
    """Return a PackedMatrix with a ShapeDtypeStruct for `panels`; arguments as in PackedMatrix."""
    num_inputs = prod(inputs)
    if kind == "int8":
        # Groups of four inputs are contiguous; scales and int32 sums come first.
        num_bytes = _PANEL * (-(-num_inputs // 4) * 4 + 8)
    else:
        num_bytes = _PANEL * num_inputs * KINDS[kind]
    shape = (prod(stacked) * -(-prod(channels) // _PANEL), num_bytes)
    panels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return PackedMatrix(panels, inputs, channels, kind, jnp.dtype(dtype).name, stacked)


def pack(
    matrix: Array,
    summed: tuple[int, ...],
    *,
    scales: Float[Array, "..."] | None = None,
    dtype: DTypeLike,
    num_stacked: int = 0,
) -> PackedMatrix:
    """Pack a matrix, or a stack of them. Call `check` first.

    matrix: float32, bfloat16, or int8 with float32 `scales`, which have the shape of the axes that
    are not summed. num_stacked: number of leading axes along which matrices are stacked. summed:
    the axes that products sum over, either the first or the last of the others. dtype: dtype of the
    matrix that is represented.
    """
    axes = tuple(range(num_stacked, matrix.ndim))
    first = summed == axes[: len(summed)]
    assert first or summed == axes[-len(summed) :], summed
    kept = tuple(axis for axis in axes if axis not in summed)
    inputs, channels = (tuple(matrix.shape[axis] for axis in each) for each in (summed, kept))
    kind, stacked = matrix.dtype.name, matrix.shape[:num_stacked]
    spec = packed_spec(inputs, channels, kind=kind, dtype=dtype, stacked=stacked)
    description: jax.ShapeDtypeStruct = spec.panels
    call = jax.ffi.ffi_call("packed_linear_pack", description)
    sides = (prod(inputs), prod(channels)) if first else (prod(channels), prod(inputs))
    panels = call(
        matrix.reshape(prod(stacked), *sides),
        jnp.zeros(0, jnp.float32) if scales is None else scales.reshape(-1),
        kind=_number(kind),
        channels_first=np.int32(not first),
    )
    return replace(spec, panels=panels)


def multiply(
    x: Float[Array, "rows *inputs"],
    matrix: PackedMatrix,
    *,
    num_rows: Int[Array, ""] | None = None,
) -> Float[Array, "rows *kept"]:
    """Multiply rows by a packed matrix, in float32.

    num_rows: number of rows that are not padding; the results of later rows are zeros.

    With int8, each row of `x` is quantized to int8 too, with its largest magnitude as 127, and
    products are summed exactly in int32. A row with a number that is not finite gives a result
    that is not finite.
    """
    num_rows = jnp.asarray(x.shape[0] if num_rows is None else num_rows, jnp.int32)
    return multiply_groups(x, matrix, num_rows[None])


def multiply_groups(
    x: Float[Array, "rows *inputs"], stack: PackedMatrix, sizes: Int[Array, " matrices"]
) -> Float[Array, "rows *kept"]:
    """Multiply each group of rows by its matrix of a stack, in float32; see `multiply`.

    sizes: number of rows of each matrix; the rows are in the order of the matrices. The results of
    rows after the last group are zeros. Only matrices with rows are read.
    """
    assert x.shape[1:] == stack.inputs, (x.shape, stack.inputs)
    result = jax.ShapeDtypeStruct((x.shape[0], prod(stack.channels)), jnp.float32)
    call = jax.ffi.ffi_call("packed_linear_multiply", result)
    with jax.named_scope("packed_linear"):
        product: Array = call(
            x.reshape(x.shape[0], -1).astype(jnp.float32),
            stack.panels,
            sizes.astype(jnp.int32),
            kind=_number(stack.kind),
        )
    return product.reshape(x.shape[0], *stack.channels)


def take(matrix: PackedMatrix, indices: Int[Array, " rows"]) -> Float[Array, "rows inputs"]:
    """Return the inputs of some channels, as of rows of an embedding table, in the matrix's dtype.

    Rows whose index is out of range are NaN.
    """
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
