"""Step inputs made by field, for tests of what happens after the logits."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxserve.execution.batch import StepInput
from jaxserve.execution.shapes import FULL

_FLOATS = ("temperature", "top_p", "repetition", "min_p", "presence", "frequency")
_INTS = (
    "kv_lengths",
    "slots",
    "feedback",
    "samples",
    "is_deferred",
    "top_k",
    "seed_low",
    "seed_high",
    "adjusts",
    "reports",
    "min_length",
)
_ONES = ("temperature", "top_p", "repetition", "reports")


def step_input(num_rows: int, **fields: ArrayLike) -> StepInput:
    """Rows of a token each, which ask for a sample at temperature 1 and for a report.

    Scalars are for all of them. What belongs to the model is empty.
    """
    needs = fields.pop("needs", FULL)
    values: dict[str, ArrayLike] = {name: name in _ONES for name in (*_INTS, *_FLOATS)}
    assert fields.keys() <= values.keys(), fields.keys() - values.keys()
    values |= fields

    def rows(name: str, dtype: type[np.generic]) -> jax.Array:
        return jnp.asarray(np.broadcast_to(np.asarray(values[name]), num_rows).astype(dtype))

    empty = jnp.zeros(0, jnp.int32)
    return StepInput(
        needs=jnp.asarray(needs, jnp.int32)[None],
        token_ids=jnp.zeros(num_rows, jnp.int32),
        positions=empty,
        row_sequences=empty,
        targets=empty,
        query_starts=jnp.arange(num_rows + 1, dtype=jnp.int32),
        page_table=jnp.zeros((num_rows, 0), jnp.int32),
        **{name: rows(name, np.int32) for name in _INTS},
        **{name: rows(name, np.float32) for name in _FLOATS},
    )


def spread_seeds(num_rows: int, *, per_seed: int = 64) -> dict[str, ArrayLike]:
    """Return fields that make every row an independent sample: seeds, and positions of each."""
    rows = range(num_rows)
    return {
        "seed_low": [row // per_seed for row in rows],
        "seed_high": [row % 7 for row in rows],
        "kv_lengths": [1 + row % per_seed for row in rows],
    }
