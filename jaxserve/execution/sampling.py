"""From logits to tokens, for a batch of rows with different parameters, in one program.

No sort of the vocabulary: the filters of top-k, top-p and min-p all keep the tokens above some
logit, so the logit is found by bisection over the bits of a float32, exactly, in at most 31 passes,
and not at all when no row asks. The passes are over the few blocks of the vocabulary with the most
likely tokens, and over the whole of it only for rows that keep more than those. The draw inverts
the cumulative distribution in two stages, over blocks and then within one, with a uniform number
for each.
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
from jaxserve.execution.state import SlotState
from jaxserve.request import MAX_LOGPROBS

# Tokens per block of the vocabulary, and blocks that are searched first. Measured with 32 rows on a
# 2-core CPU: 32 to 128 tokens and 72 to 128 blocks differ by less than a fifth.
_BLOCK = 64
_NEAR_BLOCKS = 96
_INFINITY_BITS = 0x7F800000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs:
    """Natural logs of the probabilities of a chosen token and of the most likely ones."""

    chosen: jax.Array  # float32[rows]
    rank: jax.Array  # int32[rows], 1 is the most likely
    top_ids: jax.Array  # int32[rows, MAX_LOGPROBS]
    top: jax.Array  # float32[rows, MAX_LOGPROBS]


def adjust(
    logits: Float[Array, "sequences vocab"], inputs: StepInput, state: SlotState[jax.Array]
) -> Float[Array, "sequences vocab"]:
    """Apply penalties, biases and bans to the rows that have any.

    Repetition divides positive and multiplies negative logits of tokens in prompt or output
    (Keskar et al. 2019, arXiv:1909.05858); frequency and presence penalties are OpenAI's, over
    the output alone.
    """
    slots = inputs.slots
    vocab_size = logits.shape[1]
    counts = state.counts[slots]
    occurs = state.seen[slots] | (counts > 0)
    repetition = inputs.repetition[:, None]
    scaled = jnp.where(logits > 0, logits / repetition, logits * repetition)
    adjusted = jnp.where(occurs, scaled, logits)
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
    """Whether the newest tokens of a row are all of a bad word but its last token."""
    words, lengths = state.bad_words[slots], state.bad_lengths[slots][..., None]
    width = words.shape[-1]
    is_part = jnp.arange(width - 1) >= width - lengths
    is_equal = words[..., :-1] == state.recent[slots][:, None, :]
    return jnp.all(is_equal | ~is_part, axis=-1) & (lengths[..., 0] > 0)


def greedy(logits: Float[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """Return the most likely token of each row, the first of equals.

    In two stages, the block and the place in it: XLA reduces maxima of blocks with vector
    instructions and a plain argmax without (28 times slower on a CPU for 32 rows of 32,000).
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
    """Draw a token for each row; rows of temperature 0 take the most likely one.

    min-p filters first, then top-k, then top-p over what is left, as in vLLM; tokens as likely as
    the last one kept are kept too. The token at position p of a sequence is drawn with its own
    key, so nothing else in the batch changes it.
    """
    limit = _kept_depth(logits, inputs)
    tokens = _Tokens.at(_depth(logits, inputs))
    kept = jnp.where(tokens.bits <= limit[:, None], tokens.weights, 0.0)
    # Written out once. XLA would compute them anew for each use, 7 times slower in all on a CPU.
    kept = lax.optimization_barrier(kept)
    uniforms = jax.vmap(_uniforms)(inputs.seed_low, inputs.seed_high, inputs.kv_lengths)
    return jnp.where(inputs.temperature == 0.0, greedy(logits), _draw(kept, uniforms))


def _depth(logits: Float[Array, "rows vocab"], inputs: StepInput) -> Float[Array, "rows vocab"]:
    """Return how far below its row's greatest each logit lies, divided by the temperature.

    Not negative, so its bits are ordered like itself. The difference comes first: quotients of
    large logits by a small temperature would overflow.
    """
    temperature = jnp.where(inputs.temperature == 0.0, 1.0, inputs.temperature)
    return (jnp.max(logits, axis=-1, keepdims=True) - logits) / temperature[:, None]


def _kept_depth(logits: Float[Array, "rows vocab"], inputs: StepInput) -> Int32[Array, " rows"]:
    """Return the bits of the greatest depth that the filters of each row keep."""
    is_sampled = inputs.temperature > 0.0
    by_count = is_sampled & (inputs.top_k > 0) & (inputs.top_k < logits.shape[1])
    by_mass = is_sampled & (inputs.top_p < 1.0)

    # Each branch computes the depths it needs: what branches share is written to memory, which
    # costs a CPU more than computing it again.
    def whole() -> _Tokens:
        return _Tokens.at(_depth(logits, inputs))

    def search(limit: jax.Array) -> jax.Array:
        near, horizon = _near_tokens(_depth(logits, inputs))

        def least(
            holds: Callable[[_Tokens, jax.Array], jax.Array], limit: jax.Array, where: jax.Array
        ) -> jax.Array:
            is_near = where & holds(near, jnp.minimum(limit, horizon))
            limit = _least(partial(holds, near), limit, where=is_near)
            is_far = where & ~is_near & (limit > horizon)
            found: jax.Array = lax.cond(
                jnp.any(is_far),
                lambda limit: _least(partial(holds, whole()), limit, where=is_far),
                lambda limit: limit,
                limit,
            )
            return found

        limit = least(lambda tokens, at: tokens.count(at) >= inputs.top_k, limit, by_count)
        wanted = inputs.top_p * whole().mass(limit)
        return least(lambda tokens, at: tokens.mass(at) >= wanted, limit, by_mass)

    limit = _bits(-jnp.log(inputs.min_p))
    kept: jax.Array = lax.cond(jnp.any(by_count | by_mass), search, lambda limit: limit, limit)
    return kept


@dataclass(frozen=True)
class _Tokens:
    """The vocabulary, or a part of it, as the filters see it."""

    bits: jax.Array  # int32[rows, tokens], of their depths
    weights: jax.Array  # float32[rows, tokens]

    @staticmethod
    def at(depth: Float[Array, "rows tokens"]) -> "_Tokens":
        """Return the tokens at these depths."""
        return _Tokens(_bits(depth), jnp.exp(-depth))

    def count(self, at: Int32[Array, " rows"]) -> Int32[Array, " rows"]:
        """How many lie no deeper than `at`."""
        return jnp.sum(self.bits <= at[:, None], axis=-1)

    def mass(self, at: Int32[Array, " rows"]) -> Float[Array, " rows"]:
        """What those weigh together."""
        return jnp.sum(jnp.where(self.bits <= at[:, None], self.weights, 0.0), axis=-1)


def _near_tokens(depth: Float[Array, "rows vocab"]) -> tuple[_Tokens, Int32[Array, " rows"]]:
    """Return the blocks with the least depths, and the bits of the depth down to which they do.

    All tokens above that depth are there, and of those that lie at it, one at least.
    """
    blocks = _blocks(depth, fill=jnp.inf)
    num_rows, num_blocks, _ = blocks.shape
    # All results of top_k are used: XLA makes a sort of it on CPUs if some are sliced away.
    best, order = lax.top_k(jnp.max(-blocks, axis=-1), min(_NEAR_BLOCKS, num_blocks))
    near = jnp.take_along_axis(blocks, order[:, :, None], axis=1).reshape(num_rows, -1)
    horizon = _bits(-best[:, -1])
    if num_blocks <= _NEAR_BLOCKS:
        horizon = jnp.full(num_rows, _INFINITY_BITS)
    return _Tokens.at(near), horizon


def _least(
    holds: Callable[[jax.Array], jax.Array],
    highest: Int32[Array, " rows"],
    *,
    where: Bool[Array, " rows"],
) -> Int32[Array, " rows"]:
    """Bisect for the least value up to `highest` at which a monotone predicate holds.

    Rows not in `where` return `highest`, as do rows where it holds nowhere.
    """

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        does = holds(middle)
        return jnp.where(does, low, jnp.minimum(middle + 1, high)), jnp.where(does, middle, high)

    low = jnp.where(where, 0, highest)
    return lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, highest))[1]


def _draw(
    weights: Float[Array, "rows vocab"], uniforms: Float[Array, "rows 2"]
) -> Int32[Array, " rows"]:
    """Draw an index in proportion to the weights, given two uniform numbers in [0, 1)."""
    blocks = _blocks(weights, fill=0.0)
    block = _first_above(jnp.sum(blocks, axis=-1), uniforms[:, 0])
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _first_above(within, uniforms[:, 1])


def _first_above(
    weights: Float[Array, "rows size"], uniform: Float[Array, " rows"]
) -> Int32[Array, " rows"]:
    """Return the first index of positive weight where the running sum exceeds its share."""
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    # The greatest and not the last: a parallel sum need not be monotone in its last bits.
    share = uniform * jnp.max(running, axis=-1)
    return jnp.argmax(running > share[:, None], axis=-1).astype(jnp.int32)


def _uniforms(
    seed_low: Int32[Array, ""], seed_high: Int32[Array, ""], position: Int32[Array, ""]
) -> Float[Array, " 2"]:
    """Two numbers in [0, 1) from one evaluation of the cipher: key the seed, text the position.

    Threefry (Salmon et al. 2011, doi:10.1145/2063384.2063405) is random access, so a token's
    numbers depend on its seed and position and on nothing else.
    """
    key = (seed_high.astype(jnp.uint32), seed_low.astype(jnp.uint32))
    counter = jnp.stack([position.astype(jnp.uint32), jnp.uint32(0)])
    words = threefry_2x32(key, counter)
    # The 23 leading bits as the fraction of a float in [1, 2).
    ones = lax.bitcast_convert_type(words >> 9 | np.uint32(0x3F800000), jnp.float32)
    return ones - 1.0


def _bits(depth: jax.Array) -> jax.Array:
    """Return the bits of floats that are not negative (NaN counts as infinite)."""
    # The mask makes a zero of a negative zero, which -log(1) is; adding 0.0 is optimised away.
    positive = lax.bitcast_convert_type(depth, jnp.int32) & 0x7FFFFFFF
    return jnp.minimum(positive, _INFINITY_BITS)


def logprobs(logits: Float[Array, "rows vocab"], chosen: Int32[Array, " rows"]) -> Logprobs:
    """Report the model's own distribution over the next token."""
    scores = jax.nn.log_softmax(logits, axis=-1)
    own = jnp.take_along_axis(scores, chosen[:, None], axis=-1)
    top, top_ids = lax.top_k(scores, min(MAX_LOGPROBS, logits.shape[1]))
    rank = 1 + jnp.sum(scores > own, axis=-1, dtype=jnp.int32)
    return Logprobs(chosen=own[:, 0], rank=rank, top_ids=top_ids, top=top)


def no_logprobs(num_rows: int, vocab_size: int) -> Logprobs:
    """Return a report of zeros, for steps that nobody asked for one."""
    size = min(MAX_LOGPROBS, vocab_size)
    return Logprobs(
        chosen=jnp.zeros(num_rows, jnp.float32),
        rank=jnp.zeros(num_rows, jnp.int32),
        top_ids=jnp.zeros((num_rows, size), jnp.int32),
        top=jnp.zeros((num_rows, size), jnp.float32),
    )
