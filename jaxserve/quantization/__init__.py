"""Weight formats, one file per quantization method.

A Matrix is a pytree that replaces an array and implements its matmuls. A Method defines the tensors
that a checkpoint stores for a matrix, and how to load them.
"""

from importlib import import_module

from jaxserve.quantization.layout import ARRAYS, Component, Method, Path, WeightLayout
from jaxserve.quantization.matrix import ALL_ROWS, Matrix, Rows, WeightSpec

__all__ = [
    "ALL_ROWS",
    "ARRAYS",
    "Component",
    "Matrix",
    "Method",
    "Path",
    "Rows",
    "WeightLayout",
    "WeightSpec",
    "find_method",
]


def find_method(name: str | None) -> Method:
    """Return a method by its name (`config.QUANTIZATIONS`); None means plain arrays."""
    if name is None:
        return ARRAYS
    method: Method = import_module(f"{__name__}.{name}").METHOD
    return method
