"""The step: one function from a packed batch to tokens, compiled once per StepShape."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxserve.config import DEFAULT_MAX_LOGPROBS
from jaxserve.execution import sampling
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.batch import StepInput, unpack, unpack_draw, unpack_masks
from jaxserve.execution.logits_processors import NO_PROCESSORS, LogitsProcessors
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import DrawShape, StepShape, Variant
from jaxserve.execution.state import SlotState, observe
from jaxserve.layers.linear import Rows
from jaxserve.models import Decoder, DecoderConfig, ModelConfig, Params, bind
from jaxserve.pooling import PoolingType
from jaxserve.sharding import TENSOR, partition_spec
from pallas_kernels import paged_attention

# One array per layer, as `paged_attention.cache_spec` describes it.
type KVCache = tuple[jax.Array, ...]

# Prompt rows scored at once: their logits are the largest array of a SCORE step.
SCORED_ROWS = 32

# A program that branches has branches for few sequences that sample, as where a prompt joins a few
# others: logits of all that it has room for take a CPU milliseconds to write and to search. It has
# them where that is much room. Decodes have programs of their own for few sequences.
FEW_SAMPLED = 8
MUCH_ROOM = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepOutput:
    """What a step hands back to the host."""

    tokens: jax.Array  # int32[2, sequences]: the token drawn, and a DrawStatus
    logprobs: Logprobs  # of the tokens drawn, in Variant.FULL; else zeros
    prompt_logprobs: Logprobs | None  # of the targets of every row, in Variant.SCORE


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What an engine's operator has chosen about choosing tokens and reporting them."""

    max_logprobs: int = DEFAULT_MAX_LOGPROBS  # at each token, at most the vocabulary
    logprobs_mode: str = "raw_logprobs"  # one of config.LOGPROBS_MODES
    processors: LogitsProcessors = NO_PROCESSORS


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step is compiled against, beside its shape."""

    model: ModelConfig
    mesh: Mesh
    cache_sharding: PartitionSpec
    rope_length: int
    branches: bool  # whether a program runs the least variant that does, or its own
    attention: AttentionPlan
    sampling: SamplingSettings = SamplingSettings()
    pooling: PoolingType | None = None  # what `pooling.pool_step` makes of a prompt


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
    hidden, cache = model.hidden(
        _input_tokens(inputs, state),
        inputs.positions,
        cache,
        PagedAttend(paged_batch(inputs, shape), context),
        rows=Rows(inputs.query_starts[-1]),
        rope_length=context.rope_length,
    )
    last_rows = _last_rows(inputs)

    def logits_of_first(count: int) -> jax.Array:
        logits = model.logits(hidden[last_rows[:count]], Rows(_num_sampled(inputs)))
        return _gathered(logits, context.mesh)

    held = jnp.where(inputs.holds != 0, inputs.slots, state.held.shape[0])
    rows = hidden[last_rows].astype(state.held.dtype)
    state = replace(state, held=state.held.at[held].set(rows, mode="drop"))
    output, state = _choose(
        logits_of_first,
        inputs,
        state,
        shape.variant,
        context.sampling,
        branch=context.branches,
        is_decode=shape.is_decode,
    )
    if shape.variant is Variant.SCORE:
        with jax.named_scope("prompt_logprobs"):
            score = partial(_score, model, hidden, inputs.targets, context)
            if context.branches:
                blank = jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(score)
                )
                scores = lax.cond(inputs.variant[0] >= Variant.SCORE, score, lambda: blank)
            else:
                scores = score()
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
    def drawn(variant: Variant) -> _Drawn:
        logits = _gathered(model.logits(state.held[inputs.slots]), context.mesh)
        with jax.named_scope("sampling"):
            allowed = unpack_masks(masks, vocab_size=context.model.vocab_size)
            return _draw(logits, inputs, state, variant, context.sampling, allowed=allowed)

    variants = (Variant.GREEDY, Variant.SAMPLE, Variant.FULL)
    branches = [partial(drawn, variant) for variant in variants]
    chosen = lax.switch(inputs.variant[0] - Variant.GREEDY, branches)
    return _kept(chosen, inputs, state, Variant.FULL)


def _last_rows(inputs: StepInput) -> jax.Array:
    """The row that each sequence ends in: int32[sequences]."""
    return jnp.maximum(inputs.query_starts[1:] - 1, 0)


def _input_tokens(inputs: StepInput, state: SlotState[jax.Array]) -> jax.Array:
    """Put in the tokens that the host has not seen yet: int32[tokens]."""
    fed_back = state.last_token[inputs.slots][inputs.row_sequences]
    return jnp.where(inputs.feedback[inputs.row_sequences] != 0, fed_back, inputs.token_ids)


def paged_batch(inputs: StepInput, shape: StepShape) -> paged_attention.PagedBatch:
    """Say where the rows of a step, and what they attend to, lie in pages."""
    return paged_attention.PagedBatch(
        page_table=inputs.page_table,
        query_starts=inputs.query_starts,
        kv_lengths=inputs.kv_lengths,
        row_sequences=inputs.row_sequences,
        positions=inputs.positions,
        max_query_length=shape.max_query_length,
    )


@dataclass(frozen=True)
class PagedAttend:
    """Paged attention as a decoder layer calls it: every device attends with its own heads."""

    batch: paged_attention.PagedBatch
    context: StepContext

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: jax.Array,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> tuple[jax.Array, jax.Array]:
        """See layers.attention.Attend."""
        attend = _attend_sharded(self.context, scale=scale, sliding_window=sliding_window)
        result: tuple[jax.Array, jax.Array] = attend(q, k, v, cache, self.batch)
        return result


# A jitted function of its own: it is traced and lowered once for all layers that are alike, which
# takes most of a second for a kernel. XLA puts it in their places again.
@lru_cache(maxsize=16)
def _attend_sharded(
    context: StepContext, *, scale: float, sliding_window: int | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    attend = partial(
        paged_attention.attend,
        scale=scale,
        sliding_window=sliding_window,
        backend=context.attention.backend,
        target=context.attention.target,
    )
    heads = PartitionSpec(None, TENSOR, None)
    pages = context.cache_sharding
    sharded = jax.shard_map(
        attend,
        mesh=context.mesh,
        in_specs=(heads, heads, heads, pages, PartitionSpec()),
        out_specs=(heads, pages),
        check_vma=False,
    )
    return jax.jit(sharded)


class DrawStatus(IntEnum):
    """Whether the token of a row means anything, and if not, why."""

    NOT_FINITE = 0
    DRAWN = 1
    NONE_ALLOWED = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Drawn:
    """What was drawn, for each of some sequences."""

    tokens: jax.Array  # int32[rows]
    status: jax.Array  # int32[rows], a DrawStatus
    report: Logprobs


def _num_sampled(inputs: StepInput) -> jax.Array:
    """How many sequences there are up to the last that samples."""
    return jnp.max(jnp.where(inputs.samples != 0, jnp.arange(1, inputs.samples.shape[0] + 1), 0))


def _choose(
    logits_of_first: Callable[[int], jax.Array],
    inputs: StepInput,
    state: SlotState[jax.Array],
    variant: Variant,
    settings: SamplingSettings,
    *,
    branch: bool,
    is_decode: bool = False,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Draw each sequence's token, and remember it where the sequence samples.

    logits_of_first: float32[count, vocab] of the first `count` sequences, in rows that sample.
    branch: whether to do at run time the least that the step needs, up to `variant`. is_decode:
    whether there is another program for few sequences.
    """
    num_sequences = inputs.samples.shape[0]
    variant = min(variant, Variant.FULL)

    def draw(count: int, variant: Variant) -> _Drawn:
        first = inputs.first(count)
        if variant is Variant.NONE:
            tokens = jnp.zeros(count, jnp.int32)
            drawn = _Drawn(tokens, tokens, _no_report(count, state, settings))
        else:
            logits = logits_of_first(count)
            with jax.named_scope("sampling"):
                drawn = _draw(logits, first, state, variant, settings)
        padded: _Drawn = jax.tree.map(
            lambda rows: jnp.pad(rows, [(0, num_sequences - count)] + [(0, 0)] * (rows.ndim - 1)),
            drawn,
        )
        return padded

    if not branch:
        return _kept(draw(num_sequences, variant), inputs, state, variant)
    index = jnp.minimum(inputs.variant[0], variant)
    choices = [partial(draw, num_sequences, Variant(i)) for i in range(variant + 1)]
    if num_sequences >= MUCH_ROOM and not is_decode:
        often = (Variant.GREEDY, Variant.SAMPLE)
        is_few = (
            (_num_sampled(inputs) <= FEW_SAMPLED) & (index >= min(often)) & (index <= max(often))
        )
        index = jnp.where(is_few, len(choices) + index - min(often), index)
        choices += [partial(draw, FEW_SAMPLED, each) for each in often]
    return _kept(lax.switch(index, choices), inputs, state, variant)


def _kept(
    drawn: _Drawn, inputs: StepInput, state: SlotState[jax.Array], variant: Variant
) -> tuple[StepOutput, SlotState[jax.Array]]:
    """Remember what was drawn in the slots of the sequences that sample."""
    samples = inputs.samples != 0
    slots = jnp.where(samples, inputs.slots, state.last_token.shape[0])
    state = replace(state, last_token=state.last_token.at[slots].set(drawn.tokens, mode="drop"))
    if variant is Variant.FULL:
        adjusts = samples & (inputs.adjusts != 0)
        state = observe(state, slots=inputs.slots, tokens=drawn.tokens, adjusts=adjusts)
    packed = jnp.stack([drawn.tokens, drawn.status])
    return StepOutput(tokens=packed, logprobs=drawn.report, prompt_logprobs=None), state


def _draw(
    logits: jax.Array,
    inputs: StepInput,
    state: SlotState[jax.Array],
    variant: Variant,
    settings: SamplingSettings,
    *,
    allowed: jax.Array | None = None,
) -> _Drawn:
    """Draw a token from each row of logits, doing all that `variant` can.

    allowed: bool[rows, vocab], None where every token is.
    """
    adjusted = logits
    if variant is Variant.FULL:
        adjusted = sampling.adjust(logits, inputs, state, settings.processors)
    if allowed is not None:
        adjusted = jnp.where(allowed, adjusted, -jnp.inf)
    if variant is Variant.GREEDY:
        tokens = sampling.greedy(adjusted)
    else:
        tokens = sampling.sample(adjusted, inputs)
    # Where every logit is NaN, the maximum is NaN or, on CPUs, -inf.
    is_drawn = jnp.isfinite(jnp.max(adjusted, axis=-1))
    status = is_drawn.astype(jnp.int32)
    if adjusted is not logits:
        # Adjustments or masks have forbidden what the model computed: a pass that is seldom made.
        status = lax.cond(
            jnp.all(is_drawn),
            lambda: status,
            lambda: jnp.where(
                jnp.all(adjusted == -jnp.inf, axis=-1) & jnp.any(jnp.isfinite(logits), axis=-1),
                DrawStatus.NONE_ALLOWED,
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

    if variant is Variant.FULL:
        # A search of the whole vocabulary, which most rows that adjust their logits do not ask for.
        report = lax.cond(jnp.any(inputs.reports != 0), full_report, lambda: report)
    return _Drawn(tokens, status, report)


def _no_report(num_rows: int, state: SlotState[jax.Array], settings: SamplingSettings) -> Logprobs:
    num_named = state.named.shape[1]
    return sampling.no_report(num_rows, num_top=settings.max_logprobs, num_named=num_named)


def _score(model: Decoder, hidden: jax.Array, targets: jax.Array, context: StepContext) -> Logprobs:
    """Log-probabilities of the token that follows each row, a few rows of logits at a time."""

    def score(row: tuple[jax.Array, jax.Array]) -> Logprobs:
        rows, chosen = row
        scores = jax.nn.log_softmax(_gathered(model.logits(rows), context.mesh), axis=-1)
        return sampling.report(scores, chosen, num_top=context.sampling.max_logprobs)

    num_rows = hidden.shape[0]
    size = max(size for size in range(1, SCORED_ROWS + 1) if num_rows % size == 0)
    scores: Logprobs = lax.map(
        score, (hidden.reshape(-1, size, hidden.shape[1]), targets.reshape(-1, size))
    )
    flat: Logprobs = jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), scores)
    return flat


def _gathered(logits: jax.Array, mesh: Mesh) -> jax.Array:
    """Bring float32[rows, vocab] together on every device.

    Said in two steps: asked for whole logits at once, XLA gathers the head's weights instead.
    """
    split = partition_spec(("rows", "vocab"), logits.shape, mesh)
    parts = lax.with_sharding_constraint(logits, NamedSharding(mesh, split))
    whole: jax.Array = lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec()))
    return whole
