"""Declarations of parameters for modules; `bind` supplies the arrays later."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def matrix(summed: str, **sizes: int) -> nnx.Param[Array]:
    """Declare a matrix; summed: the axes that its matmuls contract."""
    return _declare("normal", sizes, tuple(summed.split()))


def ones(**sizes: int) -> nnx.Param[Array]:
    """Declare an array that is initialized to one."""
    return _declare("ones", sizes)


def zeros(**sizes: int) -> nnx.Param[Array]:
    """Declare an array that is initialized to zero."""
    return _declare("zeros", sizes)


def _declare(
    initial: str, sizes: Mapping[str, int], summed: tuple[str, ...] = ()
) -> nnx.Param[Array]:
    """Declare an array by the name and size of each axis, and its initializer."""
    shape: Any = jax.ShapeDtypeStruct(tuple(sizes.values()), jnp.float32)
    return nnx.Param(shape, axes=tuple(sizes), initial=initial, summed=summed)
