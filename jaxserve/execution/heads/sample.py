"""Head that samples the next token of each sequence, from the logits of its last row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.execution import sampling
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import SamplingSettings, StepContext
from jaxserve.execution.forward import logits_of
from jaxserve.execution.heads.score import score_head
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import FULL, GREEDY, NOTHING, SAMPLE, Feature, StepShape
from jaxserve.execution.state import SlotState, observe
from jaxserve.layers.linear import Rows

# A branching program also has branches for up to FEW_SAMPLED sampling sequences, as when one prompt
# joins a batch. Logits for its full size would take a CPU milliseconds to write and to search. Only
# programs of at least MUCH_ROOM sequences have them. Decodes have programs for few sequences.
FEW_SAMPLED = 8
MUCH_ROOM = 32

# Feature sets of the branches. Each contains the previous one.
PATHS = (NOTHING, GREEDY, SAMPLE, FULL)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepOutput:
    """Output of a step for the host."""

    # int32[2 + yields, sequences]: SampleStatus, number of tokens, then the tokens.
    tokens: jax.Array
    logprobs: Logprobs  # with Feature.LOGPROBS `yields` rows per sequence, else zeros
    prompt_logprobs: Logprobs | None  # for the targets of all rows, with PROMPT_LOGPROBS


class SampleStatus(IntEnum):
    """Whether a sampled token is valid, and if not, why."""

    NOT_FINITE = 0
    SAMPLED = 1
    NONE_ALLOWED = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplerOutput:
    """Sampled tokens and their report."""

    tokens: jax.Array  # int32[rows]
    status: jax.Array  # int32[rows], a SampleStatus
    report: Logprobs


def sample_head(
    model: Any,
    hidden: jax.Array,
    inputs: StepInput,
    state: SlotState[jax.Array],
    *,
    shape: StepShape,
    context: StepContext,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Sample the next token of each sequence that ends in this step; see `context.Head`."""
    last = jnp.maximum(inputs.query_starts[1:] - 1, 0)  # last row of each sequence

    def logits_of_first(count: int) -> jax.Array:
        return logits_of(model, hidden[last[:count]], Rows(num_sampled(inputs)), context.sharding)

    state = defer(hidden[last], inputs, state)
    sampled = choose(logits_of_first, inputs, state, shape, context.sampling)
    output, state = to_step_output(sampled, inputs, state, adjusts=Feature.ADJUST in shape.features)
    if Feature.PROMPT_LOGPROBS in shape.features:
        scores = score_head(model, hidden, inputs, shape=shape, context=context)
        output = replace(output, prompt_logprobs=scores)
    return output, state


def defer(last: jax.Array, inputs: StepInput, state: SlotState[jax.Array]) -> SlotState[jax.Array]:
    """Store the last hidden states of the sequences whose sampling is deferred.

    last: [sequences, embed].
    """
    slots = jnp.where(inputs.is_deferred != 0, inputs.slots, state.deferred_hidden.shape[0])
    rows = last.astype(state.deferred_hidden.dtype)
    return replace(state, deferred_hidden=state.deferred_hidden.at[slots].set(rows, mode="drop"))


def to_step_output(
    sampled: SamplerOutput, inputs: StepInput, state: SlotState[jax.Array], *, adjusts: bool
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Return the output of one token per sampling sequence, and update the slots."""
    counts = jnp.minimum(inputs.samples, 1)
    state = store_tokens(sampled.tokens[:, None], counts, inputs, state, adjusts=adjusts)
    tokens = jnp.stack([sampled.status, counts, sampled.tokens])
    return StepOutput(tokens=tokens, logprobs=sampled.report, prompt_logprobs=None), state


def num_sampled(inputs: StepInput) -> jax.Array:
    """Return the number of sequences up to and including the last that samples."""
    return jnp.max(jnp.where(inputs.samples != 0, jnp.arange(1, inputs.samples.shape[0] + 1), 0))


def choose(
    logits_of_first: Callable[[int], jax.Array],
    inputs: StepInput,
    state: SlotState[jax.Array],
    shape: StepShape,
    settings: SamplingSettings,
) -> SamplerOutput:
    """Sample each sequence's token, with the fewest of the shape's features that suffice.

    logits_of_first: returns the logits of the first `count` sequences, float32[count, vocab]. Rows
    of sequences that do not sample are undefined.
    """
    num_sequences = inputs.samples.shape[0]

    def sample_first(count: int, path: Feature) -> SamplerOutput:
        first = inputs.first(count)
        if not path:
            tokens = jnp.zeros(count, jnp.int32)
            sampled = SamplerOutput(tokens, tokens, _no_report(count, state, settings))
        else:
            logits = logits_of_first(count)
            with jax.named_scope("sampling"):
                sampled = sample_tokens(logits, first, state, path, settings)
        padded: SamplerOutput = jax.tree.map(
            lambda rows: jnp.pad(rows, [(0, num_sequences - count)] + [(0, 0)] * (rows.ndim - 1)),
            sampled,
        )
        return padded

    paths = [path for path in PATHS if path in shape.features]
    if not shape.branches:
        return sample_first(num_sequences, paths[-1])
    index = first_covering(paths, inputs)
    choices = [partial(sample_first, num_sequences, path) for path in paths]
    if num_sequences >= MUCH_ROOM and not shape.is_decode:
        often = (paths.index(GREEDY), paths.index(SAMPLE))
        is_few = (
            (num_sampled(inputs) <= FEW_SAMPLED) & (index >= min(often)) & (index <= max(often))
        )
        index = jnp.where(is_few, len(choices) + index - min(often), index)
        choices += [partial(sample_first, FEW_SAMPLED, paths[each]) for each in often]
    sampled: SamplerOutput = lax.switch(index, choices)
    return sampled


def first_covering(paths: Sequence[Feature], inputs: StepInput) -> jax.Array:
    """Return the index of the first path that has every feature the step needs."""
    missing = [inputs.needs[0] & FULL & ~path != 0 for path in paths]
    return jnp.sum(jnp.stack(missing).astype(jnp.int32))


def store_tokens(
    tokens: jax.Array,
    counts: jax.Array,
    inputs: StepInput,
    state: SlotState[jax.Array],
    *,
    adjusts: bool,
) -> SlotState[jax.Array]:
    """Store the tokens of a step in the slots of its sequences.

    tokens: int32[sequences, yields], of which the first `counts` are valid. counts:
    int32[sequences]. adjusts: whether the program adjusts logits by earlier tokens.
    """
    slots = jnp.where(counts > 0, inputs.slots, state.last_token.shape[0])
    last = jnp.take_along_axis(tokens, jnp.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
    state = replace(state, last_token=state.last_token.at[slots].set(last, mode="drop"))
    if adjusts:
        counts = jnp.where(inputs.adjusts != 0, counts, 0)
        state = observe(state, slots=inputs.slots, tokens=tokens, counts=counts)
    return state


def sample_tokens(
    logits: jax.Array,
    inputs: StepInput,
    state: SlotState[jax.Array],
    path: Feature,
    settings: SamplingSettings,
    *,
    allowed: jax.Array | None = None,
) -> SamplerOutput:
    """Sample a token from each row of logits, with the features of `path`.

    allowed: bool[rows, vocab], None if every token is allowed.
    """
    adjusted = logits
    if Feature.ADJUST in path:
        adjusted = sampling.adjust(logits, inputs, state, settings.processors)
    if allowed is not None:
        adjusted = jnp.where(allowed, adjusted, -jnp.inf)
    if Feature.RANDOM not in path:
        tokens = sampling.greedy(adjusted)
    else:
        tokens = sampling.sample(adjusted, inputs)
    # If every logit is NaN, the maximum is NaN or, on CPUs, -inf.
    is_sampled = jnp.isfinite(jnp.max(adjusted, axis=-1))
    status = is_sampled.astype(jnp.int32)
    if adjusted is not logits:
        # Rarely needed: check whether adjustments or masks forbid every token.
        status = lax.cond(
            jnp.all(is_sampled),
            lambda: status,
            lambda: jnp.where(
                jnp.all(adjusted == -jnp.inf, axis=-1) & jnp.any(jnp.isfinite(logits), axis=-1),
                SampleStatus.NONE_ALLOWED,
                status,
            ),
        )
    num_top = settings.max_logprobs
    report = _no_report(logits.shape[0], state, settings)

    def full_report() -> Logprobs:
        mode, scores = settings.logprobs_mode, logits
        if mode.startswith("processed"):
            scores = sampling.processed(adjusted, inputs)
        if mode.endswith("logprobs"):
            scores = jax.nn.log_softmax(scores, axis=-1)
        return sampling.report(scores, tokens, num_top=num_top, named=state.named[inputs.slots])

    if Feature.LOGPROBS in path:
        # Searches the whole vocabulary; most rows with this path need no report.
        report = lax.cond(jnp.any(inputs.reports != 0), full_report, lambda: report)
    return SamplerOutput(tokens, status, report)


def _no_report(num_rows: int, state: SlotState[jax.Array], settings: SamplingSettings) -> Logprobs:
    num_named = state.named.shape[1]
    return sampling.no_report(num_rows, num_top=settings.max_logprobs, num_named=num_named)
