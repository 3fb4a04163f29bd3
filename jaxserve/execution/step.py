"""The step function, compiled once per StepShape."""

from functools import partial
from typing import Any

import jax
from jax import lax

from jaxserve.execution.batch import unpack, unpack_deferred, unpack_masks
from jaxserve.execution.caches import KVCache
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import forward, logits_of
from jaxserve.execution.heads.sample import (
    SamplerOutput,
    StepOutput,
    first_covering,
    sample_tokens,
    to_step_output,
)
from jaxserve.execution.shapes import FULL, GREEDY, SAMPLE, DeferredSampleShape, Feature, StepShape
from jaxserve.execution.state import SlotState
from jaxserve.layers.linear import ALL_ROWS
from jaxserve.models import Decoder, Params, bind


def step(
    params: Params,
    cache: KVCache,
    state: Any,
    packed: jax.Array,
    *,
    shape: StepShape,
    context: StepContext,
) -> tuple[Any, KVCache, Any]:
    """Run the model on a packed batch, and its head on the hidden states.

    packed: int32 array from `batch.pack` for `shape`. Donate cache and state. Returns the output
    for the host, the cache and the state. Sampled tokens also stay in `state.last_token`, where the
    next step reads them.
    """
    inputs = unpack(packed, shape)
    model = bind(context.model, params)
    token_ids = state.input_tokens(inputs)
    hidden, cache = forward(model, token_ids, inputs, cache, shape=shape, context=context)
    output, state = context.head(model, hidden, inputs, state, shape=shape, context=context)
    return output, cache, state


def sample_deferred(
    params: Params,
    state: SlotState[jax.Array],
    packed: jax.Array,
    *,
    shape: DeferredSampleShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Sample the tokens that steps deferred, restricted to the allowed tokens.

    packed: int32 array from `batch.pack_deferred` for `shape`. Donate state.
    """
    inputs, masks = unpack_deferred(packed, shape, vocab_size=context.model.vocab_size)
    model = bind(context.model, params)
    assert isinstance(model, Decoder), "deferred sampling needs a decoder"

    # Compute everything in each branch: XLA materializes what branches share.
    def sampled(path: Feature) -> SamplerOutput:
        logits = logits_of(model, state.deferred_hidden[inputs.slots], ALL_ROWS, context.sharding)
        with jax.named_scope("sampling"):
            allowed = unpack_masks(masks, vocab_size=context.model.vocab_size)
            return sample_tokens(logits, inputs, state, path, context.sampling, allowed=allowed)

    paths = (GREEDY, SAMPLE, FULL)
    chosen = lax.switch(first_covering(paths, inputs), [partial(sampled, path) for path in paths])
    return to_step_output(chosen, inputs, state, adjusts=True)
