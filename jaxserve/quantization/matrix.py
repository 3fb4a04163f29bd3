"""What every way to keep a weight shares: the rows of a product."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The rows of activations that weights are multiplied by.

    A product may skip padding rows and return zeros for them, so that a program compiled for many
    rows takes only as long as the live ones need.
    """

    num_rows: Int32[Array, ""] | None = None  # live rows, padding follows; None: all are live
    adapter_ids: Int32[Array, " rows"] | None = None  # adapter of each row; None: no adapters


ALL_ROWS = Rows()
