"""Products of groups of rows with a matrix each; see api.py."""

from pallas_kernels.grouped_matmul.api import grouped_matmul

__all__ = ["grouped_matmul"]
