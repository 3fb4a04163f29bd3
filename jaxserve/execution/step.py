"""The step: one function from a packed batch to tokens, compiled once per StepShape."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.execution.batch import StepInput, unpack, unpack_draw, unpack_masks
from jaxserve.execution.caches import KVCache
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import forward, logits_of
from jaxserve.execution.heads.sample import (
    Drawn,
    StepOutput,
    choose,
    draw_tokens,
    first_covering,
    keep,
    num_sampled,
)
from jaxserve.execution.heads.score import score
from jaxserve.execution.shapes import FULL, GREEDY, SAMPLE, DrawShape, Feature, StepShape
from jaxserve.execution.state import SlotState
from jaxserve.layers.linear import ALL_ROWS, Rows
from jaxserve.models import Decoder, DecoderConfig, Params, bind


def step(
    params: Params,
    cache: KVCache,
    state: SlotState[jax.Array],
    packed: jax.Array,
    *,
    shape: StepShape,
    context: StepContext,
) -> tuple[StepOutput, KVCache, SlotState[jax.Array]]:
    """Run the model over a packed batch and draw the next tokens.

    packed: int32 array as `batch.pack` lays it out for `shape`. cache and state are meant to be
    donated. The tokens drawn also stay on the device, in
    `state.last_token`, where the next step finds them.
    """
    assert isinstance(context.model, DecoderConfig), "encoders draw no tokens"
    inputs = unpack(packed, shape)
    model = bind(context.model, params)
    token_ids = _input_tokens(inputs, state)
    hidden, cache = forward(model, token_ids, inputs, cache, shape=shape, context=context)
    last = last_rows(inputs)

    def logits_of_first(count: int) -> jax.Array:
        return logits_of(model, hidden[last[:count]], Rows(num_sampled(inputs)), context.sharding)

    held = jnp.where(inputs.holds != 0, inputs.slots, state.held.shape[0])
    rows = hidden[last].astype(state.held.dtype)
    state = replace(state, held=state.held.at[held].set(rows, mode="drop"))
    output, state = choose(
        logits_of_first,
        inputs,
        state,
        shape,
        context.sampling,
    )
    if Feature.PROMPT_LOGPROBS in shape.features:
        with jax.named_scope("prompt_logprobs"):
            score_rows = partial(score, model, hidden, inputs, context)
            if shape.branches:
                is_scored = inputs.needs[0] & Feature.PROMPT_LOGPROBS != 0
                blank = jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(score_rows)
                )
                scores = lax.cond(is_scored, score_rows, lambda: blank)
            else:
                scores = score_rows()
            output = replace(output, prompt_logprobs=scores)
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
    return keep(chosen, inputs, state, FULL)


def last_rows(inputs: StepInput) -> jax.Array:
    """The row that each sequence ends in: int32[sequences]."""
    return jnp.maximum(inputs.query_starts[1:] - 1, 0)


def _input_tokens(inputs: StepInput, state: SlotState[jax.Array]) -> jax.Array:
    """Put in the tokens that the host has not seen yet: int32[tokens]."""
    fed_back = state.last_token[inputs.slots][inputs.row_sequences]
    return jnp.where(inputs.feedback[inputs.row_sequences] != 0, fed_back, inputs.token_ids)
