"""Head that pools each prompt into a vector."""

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
    """Device state of each slot's prompt between prefill chunks; donated and returned.

    kept: float32[slots, embed], the sum of its hidden states so far (MEAN), or the first one (CLS).
    """

    kept: Leaf

    def input_tokens(self, inputs: StepInput) -> jax.Array:
        """Return the token of each row: int32[tokens]."""
        return inputs.token_ids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoolOutput:
    """Output of a pooling step for the host."""

    vectors: jax.Array  # float32[sequences, width], valid where the prompt ends


def abstract_pool_state(*, num_slots: int, embed: int) -> PoolState[jax.ShapeDtypeStruct]:
    """Describe the state of `num_slots` slots, including slot 0, before it exists."""
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
        vectors = model.pooled(pooled.astype(hidden.dtype)) if context.model.has_head else pooled
    return PoolOutput(vectors), state


def _pool(
    hidden: jax.Array, inputs: StepInput, state: PoolState[jax.Array], kind: PoolingType
) -> tuple[jax.Array, PoolState[jax.Array]]:
    """Return float32[sequences, embed] and the new state. hidden: [tokens, embed]."""
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
        # Not a matmul with 0 and 1, which would spread a NaN to every sequence.
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
