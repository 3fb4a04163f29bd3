"""Matmuls of activations and weights."""

from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxserve.quantization.matrix import ALL_ROWS, Matrix, Rows, as_matrix

__all__ = ["ALL_ROWS", "Rows", "einsum", "grouped"]


def einsum(
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | Matrix,
    rows: Rows,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Contract activations with a weight, with the einsum letters of the model code.

    Axes of `x` are rows, then the contracted axes in the weight's order. Axes of the result are
    rows, then the weight's other axes. rows: live rows and their adapters. dtype: dtype of the
    result, by default that of `x` (float32 for logits).
    """
    dtype = x.dtype if dtype is None else dtype
    product: Array = as_matrix(weight).einsum(spec, x, rows, dtype=dtype)
    return product


def grouped(
    x: Float[Array, "rows inputs"],
    stack: Float[Array, "matrices inputs *channels"] | Matrix,
    sizes: Int[Array, " matrices"],
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "rows *channels"]:
    """Multiply groups of rows by one matrix each of a stack.

    sizes: number of rows of each matrix; the rows are in the order of the matrices. The results of
    rows after the last group are zeros. dtype: dtype of the result, by default that of `x`.
    """
    dtype = x.dtype if dtype is None else dtype
    product: Array = as_matrix(stack).grouped(x, sizes, dtype=dtype)
    return product
