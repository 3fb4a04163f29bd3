"""Online softmax of the TPU kernels.

Milakov and Gimelshein 2018 (arXiv:1805.02867), in the form of FlashAttention-2 (arXiv:2307.08691):
results are divided by the sum of weights once, at the end.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paged_attention.tpu.layout import LANES

# Below every score. The initial maximum is above it, and also below every score, so the weight of a
# masked key is exp(-5e29) = 0 even before any key was seen.
MASKED = -1e30
_UNSEEN = -5e29


class Softmax(NamedTuple):
    """Maximum, sum of weights and weighted sum of values of each query: references to VMEM.

    Queries are grouped by product; all queries of a product have the same KV head.
    """

    maximum: Any  # float32[products, rows, LANES], the same on every lane
    total: Any  # likewise
    weighted: Any  # float32[products, rows, value_lanes]

    def begin(self, nth: jax.Array | int, sinks: jax.Array | None) -> None:
        """Reset the state of product `nth`; sinks: float32[rows, LANES], or None."""
        # A sink counts as a key before all others, with value 0.
        shape = self.total.shape[1:]
        maximum = jnp.full(shape, _UNSEEN, jnp.float32)
        # A sink of -inf counts as none. It must not lower the maximum below MASKED.
        self.maximum[nth] = maximum if sinks is None else jnp.maximum(sinks, maximum)
        self.total[nth] = jnp.full(shape, 0.0 if sinks is None else 1.0, jnp.float32)
        self.weighted[nth] = jnp.zeros(self.weighted.shape[1:], jnp.float32)

    def add(
        self,
        nth: jax.Array | int,
        scores: jax.Array,
        values: jax.Array,
        *,
        is_ours: jax.Array | None = None,
    ) -> None:
        """Add scores float32[rows, keys], MASKED where unseen, and values [keys, value_lanes].

        is_ours: whether a row belongs to the sequence of the values, bool[part, value_lanes], equal
        for all parts of the rows; None for all rows. The sums of other rows are kept, because a
        weight of 0 times NaN is NaN.
        """
        maximum = self.maximum[nth]
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp(scores - new_maximum[:, :1])
        decay = jnp.exp(maximum - new_maximum)
        self.maximum[nth] = new_maximum
        self.total[nth] = self.total[nth] * decay + jnp.sum(weights, axis=1, keepdims=True)
        partial = lax.dot_general(
            weights.astype(values.dtype),
            values,
            (((1,), (0,)), ((), ())),
            precision=precision(values.dtype),
            preferred_element_type=jnp.float32,
        )
        before = self.weighted[nth]
        weighted = before * decay[:, :1] + partial
        if is_ours is not None:
            parts = (-1, *is_ours.shape)
            weighted = jnp.where(is_ours, weighted.reshape(parts), before.reshape(parts))
        self.weighted[nth] = weighted.reshape(before.shape)

    def result(self, nth: jax.Array | int) -> jax.Array:
        """Return the results, float32[rows, value_lanes]: zeros for queries that saw no key."""
        total = self.total[nth][:, :1]
        result: jax.Array = self.weighted[nth] / jnp.where(total > 0, total, 1.0)
        return result


@dataclass(frozen=True)
class Scoring:
    """Scores from products of queries and keys, and visibility of keys."""

    scale: float
    soft_cap: float | None
    sliding_window: int | None

    def first_visible(self, position: jax.Array) -> jax.Array:
        """Return the first position in the window of a query at `position`."""
        if self.sliding_window is None:
            return jnp.zeros_like(position)
        return jnp.maximum(position - self.sliding_window + 1, 0)

    def score(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Return float32[rows, keys] scores of [rows, lanes] queries and [keys, lanes] keys."""
        scores = self.scale * lax.dot_general(
            queries,
            keys,
            (((1,), (1,)), ((), ())),
            precision=precision(keys.dtype),
            preferred_element_type=jnp.float32,
        )
        if self.soft_cap is None:
            return scores
        return self.soft_cap * jnp.tanh(scores / self.soft_cap)


def precision(dtype: jnp.dtype) -> lax.Precision:
    """Return the precision of the matrix unit for operands of a dtype."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def softmax(products: int, rows: int, value_lanes: int) -> Softmax:
    """Return the scratch shapes of a Softmax of `products` products with `rows` queries each."""
    statistic = pltpu.VMEM((products, rows, LANES), jnp.float32)
    return Softmax(statistic, statistic, pltpu.VMEM((products, rows, value_lanes), jnp.float32))
