"""Every product of activations and weights goes through `einsum`."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxserve.quantization import int8
from jaxserve.quantization.int8 import Int8Matrix
from jaxserve.quantization.matrix import ALL_ROWS, Rows
from pallas_kernels import packed_linear
from pallas_kernels.packed_linear import PackedMatrix

__all__ = ["ALL_ROWS", "Rows", "einsum"]


def einsum(
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | Int8Matrix | PackedMatrix,
    rows: Rows,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Contract activations with a weight, in the einsum letters of the model code.

    Rows come first in the activations, then what is summed over, in the weight's order; the result
    has the rows, then the weight's other axes.
    The result has the dtype of `x`, or `dtype` where more is wanted than the activations carry
    (float32 logits); products of narrower types are accumulated in float32 by XLA in any case.
    Model code never asks what a weight is made of: that is decided here.
    """
    dtype = x.dtype if dtype is None else dtype
    if isinstance(weight, PackedMatrix):
        return packed_linear.multiply(x, weight, num_rows=rows.num_rows).astype(dtype)
    if isinstance(weight, Int8Matrix):
        return int8.einsum(spec, x, weight, dtype=dtype)
    return jnp.einsum(spec, x, weight, preferred_element_type=dtype)
