"""The step: one function from a packed batch to results, compiled once per StepShape."""

from functools import partial
from typing import Any

import jax
from jax import lax

from jaxserve.execution.batch import unpack, unpack_draw, unpack_masks
from jaxserve.execution.caches import KVCache
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import forward, logits_of
from jaxserve.execution.heads.sample import Drawn, StepOutput, draw_tokens, first_covering, yielded
from jaxserve.execution.shapes import FULL, GREEDY, SAMPLE, DrawShape, Feature, StepShape
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
    """Run the model over a packed batch, and its head over the hidden states.

    packed: int32 array as `batch.pack` lays it out for `shape`. cache and state are meant to be
    donated. Returns what the host gets, the cache and the state. Tokens that are sampled stay in
    `state.last_token` too, where the next step finds them.
    """
    inputs = unpack(packed, shape)
    model = bind(context.model, params)
    token_ids = state.input_tokens(inputs)
    hidden, cache = forward(model, token_ids, inputs, cache, shape=shape, context=context)
    output, state = context.head(model, hidden, inputs, state, shape=shape, context=context)
    return output, cache, state


def draw(
    params: Params,
    state: SlotState[jax.Array],
    packed: jax.Array,
    *,
    shape: DrawShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Draw the tokens that steps have held, of those that are allowed.

    packed: int32 array as `batch.pack_draw` lays it out for `shape`. state is meant to be donated.
    """
    inputs, masks = unpack_draw(packed, shape, vocab_size=context.model.vocab_size)
    model = bind(context.model, params)
    assert isinstance(model, Decoder), "only what generates draws tokens"

    # All of it in each branch: what branches share is written to memory.
    def drawn(path: Feature) -> Drawn:
        logits = logits_of(model, state.held[inputs.slots], ALL_ROWS, context.sharding)
        with jax.named_scope("sampling"):
            allowed = unpack_masks(masks, vocab_size=context.model.vocab_size)
            return draw_tokens(logits, inputs, state, path, context.sampling, allowed=allowed)

    paths = (GREEDY, SAMPLE, FULL)
    chosen = lax.switch(first_covering(paths, inputs), [partial(drawn, path) for path in paths])
    return yielded(chosen, inputs, state, adjusts=True)
