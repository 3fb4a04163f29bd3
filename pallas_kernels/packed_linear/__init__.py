"""Matrix products with packed weights, on CPUs; see api.py."""

from pallas_kernels.packed_linear.api import (
    KINDS,
    PackedMatrix,
    check,
    multiply,
    multiply_groups,
    pack,
    packed_spec,
    take,
)

__all__ = [
    "KINDS",
    "PackedMatrix",
    "check",
    "multiply",
    "multiply_groups",
    "pack",
    "packed_spec",
    "take",
]
