"""Every product of activations and weights goes through `einsum`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxserve.quantization import int8
from jaxserve.quantization.int8 import Int8Matrix
from pallas_kernels import packed_linear
from pallas_kernels.packed_linear import PackedMatrix

_num_rows: ContextVar[jax.Array | None] = ContextVar("num_rows", default=None)


@contextmanager
def padded_after(num_rows: Int[Array, ""]) -> Iterator[None]:
    """Say, while tracing, that rows from `num_rows` on are padding.

    Products may leave them out, and return zeros for them: those with packed matrices do. So a
    program made for many rows takes as long as the rows that there are.
    """
    token = _num_rows.set(num_rows)
    try:
        yield
    finally:
        _num_rows.reset(token)


def einsum(
    spec: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | Int8Matrix | PackedMatrix,
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
        return packed_linear.multiply(x, weight, num_rows=_num_rows.get()).astype(dtype)
    if isinstance(weight, Int8Matrix):
        return int8.einsum(spec, x, weight, dtype=dtype)
    return jnp.einsum(spec, x, weight, preferred_element_type=dtype)
