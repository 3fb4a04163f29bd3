"""Grouped matmul as a loop over tiles of rows, in plain JAX.

Rows are cut into tiles of one group each (Gale et al., "MegaBlocks", 2022, arXiv:2211.15841). A
tile is one product with its group's matrix, so the matrices of empty groups are not read, and the
work does not grow with the number of groups.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

_LEAST_ROWS, _MOST_ROWS = 8, 128


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    x: Float[Array, "rows inputs"],
    matrices: Float[Array, "groups inputs outputs"],
    sizes: Int[Array, " groups"],
    dtype: DTypeLike,
) -> Float[Array, "rows outputs"]:
    """See api.grouped_matmul."""
    tiles = _Tiles.over(x.shape[0], sizes)
    padded = jnp.pad(x, [(0, tiles.height), (0, 0)])

    def multiply(number: Array, out: Array) -> Array:
        group, start, is_own = tiles.at(number)
        rows = lax.dynamic_slice_in_dim(padded, start, tiles.height)
        matrix = lax.dynamic_index_in_dim(matrices, group, keepdims=False)
        product = jnp.matmul(rows, matrix, preferred_element_type=dtype)
        before = lax.dynamic_slice_in_dim(out, start, tiles.height)
        written = jnp.where(is_own[:, None], product, before)
        return lax.dynamic_update_slice_in_dim(out, written, start, axis=0)

    # Not zeros: XLA would share them between layers, and copy them for all layers at once.
    out = jnp.broadcast_to(padded[:, :1].astype(dtype), (padded.shape[0], matrices.shape[2]))
    product: Array = lax.fori_loop(0, tiles.number, multiply, out)
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.where(rows < tiles.ends[-1], product[: x.shape[0]], 0)


class _Tiles(NamedTuple):
    """Tiles of at most `height` rows; `ends` and `last` are those after each group."""

    height: int
    starts: Int[Array, " groups"]
    ends: Int[Array, " groups"]
    last: Int[Array, " groups"]

    @staticmethod
    def over(num_rows: int, sizes: Int[Array, " groups"]) -> "_Tiles":
        """Cut rows into tiles, about as high as the groups would be if they were alike."""
        height = min(max(num_rows // sizes.shape[0], _LEAST_ROWS), _MOST_ROWS)
        ends = jnp.cumsum(sizes)
        return _Tiles(height, ends - sizes, ends, jnp.cumsum(-(-sizes // height)))

    @property
    def number(self) -> Int[Array, ""]:
        """Number of tiles."""
        return self.last[-1]

    def at(self, number: Array) -> tuple[Array, Array, Array]:
        """Return the group and first row of a tile, and which of its rows are the group's."""
        # Not by bisection, which would be a loop within the loop.
        group = jnp.searchsorted(self.last, number, side="right", method="compare_all")
        is_first = group == 0
        before = jnp.where(is_first, 0, self.last[jnp.where(is_first, 0, group - 1)])
        start = self.starts[group] + (number - before) * self.height
        return group, start, start + jnp.arange(self.height) < self.ends[group]


def _forward(x: Array, matrices: Array, sizes: Array, dtype: DTypeLike) -> tuple[Array, Any]:
    return grouped_matmul(x, matrices, sizes, dtype), (x, matrices, sizes)


def _backward(dtype: DTypeLike, residuals: Any, slope: Array) -> tuple[Array, Array, None]:
    del dtype
    x, matrices, sizes = residuals
    tiles = _Tiles.over(x.shape[0], sizes)
    padded, slopes = (jnp.pad(each, [(0, tiles.height), (0, 0)]) for each in (x, slope))

    def add(number: Array, total: Array) -> Array:
        group, start, is_own = tiles.at(number)
        rows = lax.dynamic_slice_in_dim(padded, start, tiles.height) * is_own[:, None]
        of_rows = lax.dynamic_slice_in_dim(slopes, start, tiles.height)
        return total.at[group].add((rows.T @ of_rows).astype(total.dtype))

    of_matrices = lax.fori_loop(0, tiles.number, add, jnp.zeros_like(matrices))
    transposed = matrices.transpose(0, 2, 1)
    return grouped_matmul(slope, transposed, sizes, x.dtype), of_matrices, None


grouped_matmul.defvjp(_forward, _backward)
