"""Every product of activations and weights goes through `einsum`."""

from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxserve.quantization.matrix import ALL_ROWS, Matrix, Rows, as_matrix

__all__ = ["ALL_ROWS", "Rows", "einsum"]


def einsum(
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | Matrix,
    rows: Rows,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Contract activations with a weight, in the einsum letters of the model code.

    The rows come first in the activations, then the axes that are summed over, in the weight's
    order; the result has the rows, then the weight's other axes. rows: which of them are live, and
    their adapters. The result has the dtype of `x`, or `dtype` if more is wanted than activations
    carry (float32 logits).
    """
    dtype = x.dtype if dtype is None else dtype
    product: Array = as_matrix(weight).einsum(spec, x, rows, dtype=dtype)
    return product
