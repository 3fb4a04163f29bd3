"""A head that verifies drafted tokens greedily: a second tenant of the seam of heads."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import logits_of
from jaxserve.execution.heads.sample import StepOutput, sample_head, store_tokens
from jaxserve.execution.sampling import greedy, no_report
from jaxserve.execution.shapes import Feature, StepShape
from jaxserve.execution.state import SlotState
from jaxserve.layers.linear import ALL_ROWS

MOST_DRAFTS = 3


def verify_head(
    model: Any,
    hidden: jax.Array,
    inputs: StepInput,
    state: SlotState[jax.Array],
    *,
    shape: StepShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Yield the drafts that are the most likely tokens, and the token after them."""
    if Feature.DRAFTS not in shape.features:
        return sample_head(model, hidden, inputs, state, shape=shape, context=context)
    num_sequences, yields = inputs.samples.shape[0], MOST_DRAFTS + 1
    # Each sequence yields after its last rows, as many as it may.
    offsets = jnp.arange(yields)
    rows = inputs.query_starts[1:, None] - inputs.samples[:, None] + offsets
    rows = jnp.clip(rows, 0, hidden.shape[0] - 1)
    logits = logits_of(model, hidden[rows.reshape(-1)], ALL_ROWS, context.sharding)
    tokens = greedy(logits).reshape(num_sequences, yields)
    is_draft = offsets[1:] < inputs.samples[:, None]
    is_right = is_draft & (tokens[:, :-1] == inputs.token_ids[rows[:, 1:]])
    confirmed = jnp.sum(jnp.cumprod(is_right.astype(jnp.int32), axis=1), axis=1)
    counts = jnp.where(inputs.samples > 0, 1 + confirmed, 0)
    is_finite = jnp.isfinite(logits).all(axis=1).reshape(num_sequences, yields)
    status = (is_finite | (offsets >= counts[:, None])).all(axis=1)
    state = store_tokens(tokens, counts, inputs, state, adjusts=False)
    report = no_report(num_sequences * yields, num_top=context.sampling.max_logprobs)
    packed = jnp.concatenate([status[None].astype(jnp.int32), counts[None], tokens.T])
    return StepOutput(tokens=packed, logprobs=report, prompt_logprobs=None), state
