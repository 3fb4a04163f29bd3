"""The head that pools prompts into vectors."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.api.pooling import PoolingType
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.shapes import StepShape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoolState[Leaf]:
    """What the device remembers of each slot's prompt between its pieces; donated and returned.

    kept: float32[slots, embed], the sum of its hidden states so far (MEAN), or its first (CLS).
    """

    kept: Leaf

    def input_tokens(self, inputs: StepInput) -> jax.Array:
        """Return the token of each row: int32[tokens]."""
        return inputs.token_ids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoolOutput:
    """What a step that pools hands back to the host."""

    vectors: jax.Array  # float32[sequences, width], of those whose prompt ends in this step


def abstract_pool_state(*, num_slots: int, embed: int) -> PoolState[jax.ShapeDtypeStruct]:
    """Describe the state before it exists, for `num_slots` slots, slot 0 included."""
    return PoolState(kept=jax.ShapeDtypeStruct((num_slots, embed), np.float32))


def pool_head(
    model: Any,
    hidden: jax.Array,
    inputs: StepInput,
    state: PoolState[jax.Array],
    *,
    shape: StepShape,  # noqa: ARG001
    context: StepContext,
) -> tuple[PoolOutput, PoolState[jax.Array]]:
    """Pool the prompts that end in this step; see `context.Head`."""
    assert context.pooling is not None
    with jax.named_scope("pooling"):
        pooled, state = _pool(hidden, inputs, state, context.pooling)
        vectors = model.pooled(pooled.astype(hidden.dtype)) if context.model.num_labels else pooled
    return PoolOutput(vectors), state


def _pool(
    hidden: jax.Array, inputs: StepInput, state: PoolState[jax.Array], kind: PoolingType
) -> tuple[jax.Array, PoolState[jax.Array]]:
    """Return float32[sequences, embed], and the state; `hidden` has a row for each token."""
    firsts, stops = inputs.query_starts[:-1], inputs.query_starts[1:]
    if kind is PoolingType.LAST:
        return hidden[jnp.maximum(stops - 1, 0)].astype(jnp.float32), state
    is_first_piece = (inputs.kv_lengths == stops - firsts)[:, None]
    before = state.kept[inputs.slots]
    if kind is PoolingType.CLS:
        kept = jnp.where(is_first_piece, hidden[firsts].astype(jnp.float32), before)
    else:
        num_sequences = firsts.shape[0]
        is_live = jnp.arange(hidden.shape[0]) < stops[-1]
        # Not a product with 0 and 1: a NaN stays with the sequence that has it.
        summed = jax.ops.segment_sum(
            hidden.astype(jnp.float32),
            jnp.where(is_live, inputs.row_sequences, num_sequences),
            num_segments=num_sequences,
            indices_are_sorted=True,
        )
        kept = jnp.where(is_first_piece, 0.0, before) + summed
    state = PoolState(state.kept.at[inputs.slots].set(kept))
    if kind is PoolingType.CLS:
        return kept, state
    return kept / jnp.maximum(inputs.kv_lengths, 1)[:, None], state
