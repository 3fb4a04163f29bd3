"""Sampling from logits, for a batch of rows with different parameters, in one program.

The vocabulary is not sorted. The top-k, top-p and min-p filters all keep the tokens above some
logit, which is found exactly by bisection over the bits of a float32, in at most 32 passes. Rows
without filters need none. The passes cover only the blocks of the vocabulary with the most likely
tokens. They cover the whole vocabulary only if a row keeps more tokens than those. Sampling inverts
the cumulative distribution in two stages, over blocks and then within one block, with one uniform
number each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int32

from jaxserve.execution.batch import StepInput
from jaxserve.execution.logits_processors import NO_PROCESSORS, LogitsProcessors, ProcessorInput
from jaxserve.execution.state import SlotState

# Tokens per block of the vocabulary, and blocks to search first. Measured with 32 rows on a 2-core
# CPU: 32 to 128 tokens and 72 to 128 blocks differ by less than a fifth.
_BLOCK = 64
_NEAR_BLOCKS = 96


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs:
    """Scores (by default log-probabilities) of the chosen, the top and the named tokens."""

    chosen: jax.Array  # float32[rows]
    rank: jax.Array  # int32[rows], 1 is the most likely
    top_ids: jax.Array  # int32[rows, num_top]
    top: jax.Array  # float32[rows, num_top]
    named: jax.Array  # float32[rows, num_named]


def adjust(
    logits: Float[Array, "sequences vocab"],
    inputs: StepInput,
    state: SlotState[jax.Array],
    processors: LogitsProcessors = NO_PROCESSORS,
) -> Float[Array, "sequences vocab"]:
    """Apply logits processors, then penalties, biases and bans, to the rows that use them.

    The repetition penalty divides positive and multiplies negative logits of tokens in prompt or
    output (Keskar et al., 2019, arXiv:1909.05858). Frequency and presence penalties are OpenAI's
    and cover the output only.
    """
    slots = inputs.slots
    vocab_size = logits.shape[1]
    counts, seen = state.counts[slots], state.seen[slots]
    adjusted = processors(
        logits,
        ProcessorInput(
            values=state.extra[slots],
            in_prompt=seen,
            counts=counts,
            recent=state.recent[slots],
            lengths=inputs.kv_lengths,
        ),
    )
    repetition = inputs.repetition[:, None]
    scaled = jnp.where(adjusted > 0, adjusted / repetition, adjusted * repetition)
    adjusted = jnp.where(seen | (counts > 0), scaled, adjusted)
    adjusted -= inputs.frequency[:, None] * counts
    adjusted -= inputs.presence[:, None] * (counts > 0)
    adjusted += state.bias[slots]

    rows = jnp.arange(logits.shape[0])[:, None]
    is_short = inputs.kv_lengths < inputs.min_length
    stops = jnp.where(is_short[:, None], state.stop_ids[slots], vocab_size)
    adjusted = adjusted.at[rows, stops].set(-jnp.inf, mode="drop")
    completions = jnp.where(
        _completes_bad_word(state, slots), state.bad_words[slots][..., -1], vocab_size
    )
    adjusted = adjusted.at[rows, completions].set(-jnp.inf, mode="drop")
    return jnp.where(inputs.adjusts[:, None] != 0, adjusted, logits)


def _completes_bad_word(
    state: SlotState[jax.Array], slots: Int32[Array, " sequences"]
) -> Bool[Array, "sequences words"]:
    """Return whether the newest tokens of a row are a bad word without its last token."""
    words, lengths = state.bad_words[slots], state.bad_lengths[slots][..., None]
    width = words.shape[-1]
    is_part = jnp.arange(width - 1) >= width - lengths
    is_equal = words[..., :-1] == state.recent[slots][:, None, :]
    return jnp.all(is_equal | ~is_part, axis=-1) & (lengths[..., 0] > 0)


def greedy(logits: Float[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """Return the most likely token of each row, the first among equals.

    Finds the block, then the token in it: XLA vectorizes maxima of blocks but not a plain argmax,
    which is 28 times slower on a CPU for 32 rows of 32,000.
    """
    blocks = _blocks(logits, fill=-jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + jnp.argmax(within, axis=-1)).astype(jnp.int32)


def _blocks(rows: Float[Array, "rows vocab"], *, fill: float) -> Float[Array, "rows blocks block"]:
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % _BLOCK)), constant_values=fill)
    return padded.reshape(rows.shape[0], -1, _BLOCK)


def sample(
    logits: Float[Array, "sequences vocab"], inputs: StepInput
) -> Int32[Array, " sequences"]:
    """Sample a token for each row; rows of temperature 0 take the most likely one.

    The filters apply in vLLM's order: min-p, top-k, then top-p over the remaining tokens. Ties with
    the last kept token are kept too. Each position of a sequence has its own random key, so the
    result does not depend on the rest of the batch.
    """
    tokens = _Tokens.of(logits, logits, inputs)
    kept = jnp.where(tokens.order >= _floor(logits, inputs)[:, None], tokens.weights, 0.0)
    # Materialize the weights. XLA would recompute them for each use, 7 times slower on a CPU.
    kept = lax.optimization_barrier(kept)
    uniforms = jax.vmap(_uniforms)(inputs.seed_low, inputs.seed_high, inputs.kv_lengths)
    return jnp.where(inputs.temperature == 0.0, greedy(logits), _sample_weights(kept, uniforms))


def _floor(logits: Float[Array, "rows vocab"], inputs: StepInput) -> Int32[Array, " rows"]:
    """Return `_order` of the least logit that the filters of each row keep."""
    is_sampled = inputs.temperature > 0.0
    by_count = is_sampled & (inputs.top_k > 0) & (inputs.top_k < logits.shape[1])
    by_mass = is_sampled & (inputs.top_p < 1.0)
    top = jnp.max(logits, axis=-1)

    # Each branch computes the weights that it needs: XLA materializes what branches share, which
    # costs a CPU more than computing it again.
    def whole() -> _Tokens:
        return _Tokens.of(logits, logits, inputs)

    def search(floor: jax.Array) -> jax.Array:
        near_logits, horizon = _near(logits)
        near = _Tokens.of(near_logits, logits, inputs)

        def raise_to(
            holds: Callable[[_Tokens, jax.Array], jax.Array], floor: jax.Array, where: jax.Array
        ) -> jax.Array:
            """Return the greatest floor at which `holds`, searching the near blocks first."""
            is_near = where & holds(near, jnp.maximum(floor, horizon))
            floor = _greatest(partial(holds, near), floor, jnp.where(is_near, _order(top), floor))
            is_far = where & ~is_near & (floor < horizon)
            found: jax.Array = lax.cond(
                jnp.any(is_far),
                lambda low: _greatest(
                    partial(holds, whole()), low, jnp.where(is_far, horizon, low)
                ),
                lambda low: low,
                floor,
            )
            return found

        floor = raise_to(lambda tokens, at: tokens.count(at) >= inputs.top_k, floor, by_count)
        wanted = inputs.top_p * whole().mass(floor)
        return raise_to(lambda tokens, at: tokens.mass(at) >= wanted, floor, by_mass)

    floor = _order(top + inputs.temperature * jnp.log(inputs.min_p))
    raised: jax.Array = lax.cond(jnp.any(by_count | by_mass), search, lambda low: low, floor)
    return raised


@dataclass(frozen=True)
class _Tokens:
    """The vocabulary, or a part of it, as input of the filters.

    Filters compare the bits of logits, never results of arithmetic. Those may differ in the last
    bit between two places in a program, and the token at the floor would be lost.
    """

    order: jax.Array  # int32[rows, tokens], of their logits
    weights: jax.Array  # float32[rows, tokens], 1 for the most likely

    @staticmethod
    def of(
        part: Float[Array, "rows tokens"], logits: Float[Array, "rows vocab"], inputs: StepInput
    ) -> "_Tokens":
        """Return a part of the logits of each row as filter input."""
        top = jnp.max(logits, axis=-1, keepdims=True)
        temperature = jnp.where(inputs.temperature == 0.0, 1.0, inputs.temperature)
        # Subtract first: large logits divided by a small temperature would overflow.
        return _Tokens(_order(part), jnp.exp((part - top) / temperature[:, None]))

    def count(self, floor: Int32[Array, " rows"]) -> Int32[Array, " rows"]:
        """Return the number of tokens at or above a floor."""
        return jnp.sum(self.order >= floor[:, None], axis=-1)

    def mass(self, floor: Int32[Array, " rows"]) -> Float[Array, " rows"]:
        """Return the total weight of tokens at or above a floor."""
        return jnp.sum(jnp.where(self.order >= floor[:, None], self.weights, 0.0), axis=-1)


def _near(
    logits: Float[Array, "rows vocab"],
) -> tuple[Float[Array, "rows near"], Int32[Array, " rows"]]:
    """Return the blocks with the greatest logits, and `_order` of their lower bound.

    The blocks contain every logit above the bound, and at least one that is equal to it.
    """
    blocks = _blocks(logits, fill=-jnp.inf)
    num_rows, num_blocks, _ = blocks.shape
    # Use all results of top_k: if some are sliced away, XLA for CPUs replaces it by a sort.
    best, chosen = lax.top_k(jnp.max(blocks, axis=-1), min(_NEAR_BLOCKS, num_blocks))
    near = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(num_rows, -1)
    horizon = _order(best[:, -1])
    if num_blocks <= _NEAR_BLOCKS:
        horizon = jnp.full(num_rows, np.iinfo(np.int32).min)
    return near, horizon


def _order(x: jax.Array) -> jax.Array:
    """Return int32 values with the order of the floats; equal floats give equal integers."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0.0, 0.0, x), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _greatest(
    holds: Callable[[jax.Array], jax.Array],
    lowest: Int32[Array, " rows"],
    highest: Int32[Array, " rows"],
) -> Int32[Array, " rows"]:
    """Bisect for the greatest value up to `highest` at which a monotone predicate holds.

    Return `lowest` for rows where it does not hold above `lowest`.
    """

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        is_open = low < high
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        does = holds(middle)
        return jnp.where(is_open & does, middle, low), jnp.where(is_open & ~does, middle - 1, high)

    return lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (lowest, highest))[
        0
    ]


def _sample_weights(
    weights: Float[Array, "rows vocab"], uniforms: Float[Array, "rows 2"]
) -> Int32[Array, " rows"]:
    """Sample an index in proportion to the weights, from two uniform numbers in [0, 1)."""
    blocks = _blocks(weights, fill=0.0)
    block = _first_above(jnp.sum(blocks, axis=-1), uniforms[:, 0])
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _first_above(within, uniforms[:, 1])


def _first_above(
    weights: Float[Array, "rows size"], uniform: Float[Array, " rows"]
) -> Int32[Array, " rows"]:
    """Return the first index of positive weight where the running sum exceeds its share."""
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    # Use the maximum, not the last sum: a parallel sum may not be monotone in its last bits.
    share = uniform * jnp.max(running, axis=-1)
    return jnp.argmax(running > share[:, None], axis=-1).astype(jnp.int32)


def _uniforms(
    seed_low: Int32[Array, ""], seed_high: Int32[Array, ""], position: Int32[Array, ""]
) -> Float[Array, " 2"]:
    """Return two numbers in [0, 1) from one block of the Threefry cipher.

    The seed is the key and the position is the counter (Salmon et al., 2011,
    doi:10.1145/2063384.2063405), so a token's numbers depend on seed and position only.
    """
    key = (seed_high.astype(jnp.uint32), seed_low.astype(jnp.uint32))
    counter = jnp.stack([position.astype(jnp.uint32), jnp.uint32(0)])
    words = threefry_2x32(key, counter)
    # Use the 23 leading bits as the fraction of a float in [1, 2).
    ones = lax.bitcast_convert_type(words >> 9 | np.uint32(0x3F800000), jnp.float32)
    return ones - 1.0


def processed(
    logits: Float[Array, "sequences vocab"], inputs: StepInput
) -> Float[Array, "sequences vocab"]:
    """Return filtered logits, divided by the temperature; -inf for removed tokens."""
    kept = _order(logits) >= _floor(logits, inputs)[:, None]
    is_greedy = inputs.temperature == 0.0
    scaled = logits / jnp.where(is_greedy, 1.0, inputs.temperature)[:, None]
    return jnp.where(kept | is_greedy[:, None], scaled, -jnp.inf)


def report(
    scores: Float[Array, "rows vocab"],
    chosen: Int32[Array, " rows"],
    *,
    num_top: int,
    named: Int32[Array, "rows named"] | None = None,
) -> Logprobs:
    """Return the scores of the chosen token, the top tokens and the named tokens."""
    own = jnp.take_along_axis(scores, chosen[:, None], axis=-1)
    top, top_ids = lax.top_k(scores, num_top)
    rank = 1 + jnp.sum(scores > own, axis=-1, dtype=jnp.int32)
    if named is None:
        named = jnp.zeros((scores.shape[0], 0), jnp.int32)
    return Logprobs(
        chosen=own[:, 0],
        rank=rank,
        top_ids=top_ids,
        top=top,
        named=jnp.take_along_axis(scores, named, axis=-1),
    )


def no_report(num_rows: int, *, num_top: int, num_named: int = 0) -> Logprobs:
    """Return a report of zeros, for steps without log-probabilities."""
    return Logprobs(
        chosen=jnp.zeros(num_rows, jnp.float32),
        rank=jnp.zeros(num_rows, jnp.int32),
        top_ids=jnp.zeros((num_rows, num_top), jnp.int32),
        top=jnp.zeros((num_rows, num_top), jnp.float32),
        named=jnp.zeros((num_rows, num_named), jnp.float32),
    )
