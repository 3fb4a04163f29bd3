"""Declarations of parameters for modules; `bind` supplies the arrays later."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxserve.quantization.matrix import WeightSpec


def matrix(summed: str, *, stacked: str = "", **sizes: int) -> nnx.Param[Array]:
    """Declare a matrix; summed: the axes that its matmuls contract.

    stacked: leading axes along which independent matrices are stacked.
    """
    return _declare("normal", sizes, summed=tuple(summed.split()), stacked=tuple(stacked.split()))


def normal(**sizes: int) -> nnx.Param[Array]:
    """Declare an array that is initialized like a matrix, and never quantized or packed."""
    return _declare("normal", sizes)


def ones(**sizes: int) -> nnx.Param[Array]:
    """Declare an array that is initialized to one."""
    return _declare("ones", sizes)


def zeros(dtype: str | None = None, /, **sizes: int) -> nnx.Param[Array]:
    """Declare an array that is initialized to zero. dtype: by default that of the model."""
    return _declare("zeros", sizes, dtype=dtype)


def _declare(
    initial: str,
    sizes: Mapping[str, int],
    *,
    summed: tuple[str, ...] = (),
    stacked: tuple[str, ...] = (),
    dtype: str | None = None,
) -> nnx.Param[Array]:
    """Declare an array by its initializer, and the name and size of each axis."""
    spec = WeightSpec(tuple(sizes), tuple(sizes.values()), summed, stacked, dtype)
    shape: Any = jax.ShapeDtypeStruct(spec.shape, jnp.float32)
    return nnx.Param(shape, spec=spec, initial=initial)


def spec_of(param: nnx.Param[Any]) -> WeightSpec:
    """Return the axes and the shape of a parameter."""
    spec: WeightSpec = param.get_metadata("spec")
    return spec
