"""Weight formats, one file per method.

A Matrix is a pytree that stands where an array would, and knows its product; a Method says what a
checkpoint stores of one and how it is loaded.
"""

from importlib import import_module

from jaxserve.quantization.layout import ARRAYS, Component, Method, WeightLayout
from jaxserve.quantization.matrix import ALL_ROWS, Matrix, Rows, WeightSpec

__all__ = [
    "ALL_ROWS",
    "ARRAYS",
    "Component",
    "Matrix",
    "Method",
    "Rows",
    "WeightLayout",
    "WeightSpec",
    "find_method",
]


def find_method(name: str | None) -> Method:
    """Return a method by its name (`config.QUANTIZATIONS`); None is plain arrays."""
    if name is None:
        return ARRAYS
    method: Method = import_module(f"{__name__}.{name}").METHOD
    return method
