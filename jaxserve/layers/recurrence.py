"""Linear recurrences over packed sequences: chunks of prompts, and single tokens.

A chunk is computed by matmuls, which is much faster than token by token. Sequences are divided into
chunks separately, so a chunk has tokens of one sequence only. Those with a single token, which
decode, take one step of the recurrence instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jaxserve.layers.recurrent import States

# Tokens per chunk.
CHUNK = 64
# Chunks that are prepared at once.
_BLOCK = 8

type Tokens = tuple[Array, ...]


@dataclass(frozen=True)
class Recurrence:
    """A recurrence in three functions, with a state per sequence.

    step: (states [sequences, ...], inputs [sequences, ...]) to new states and outputs, for one
    token of each sequence. prepare: inputs [chunks, CHUNK, ...] to whatever needs no state.
    advance: (state, one prepared chunk) to the state after it and outputs [CHUNK, ...]. Inputs of
    zeros, which fill the last chunk of a sequence, must not change the state.
    """

    step: Callable[[Array, Tokens], tuple[Array, Array]]
    prepare: Callable[[Tokens], Any]
    advance: Callable[[Array, Any], tuple[Array, Array]]


def recur(
    recurrence: Recurrence,
    inputs: Tokens,
    before: Float[Array, "sequences *state"],
    states: States,
) -> tuple[Float[Array, "tokens *outputs"], Float[Array, "sequences *state"]]:
    """Apply a recurrence to the tokens of a step; return outputs and the states after them.

    inputs: arrays [tokens, ...]. Outputs of padding are unspecified.
    """
    num_sequences, num_tokens = before.shape[0], inputs[0].shape[0]
    if num_tokens == num_sequences:
        after, outputs = recurrence.step(before, inputs)
        return outputs, after
    first, lengths = states.query_starts[:-1], jnp.diff(states.query_starts)
    is_single = lengths == 1
    single_inputs = tuple(jnp.take(each, first, axis=0, mode="clip") for each in inputs)
    stepped, single = recurrence.step(before, single_inputs)
    before = jnp.where(_widened(is_single, before.ndim), stepped, before)
    owners = jnp.minimum(states.row_sequences, num_sequences - 1)
    chunks = _Chunks.divide(states.query_starts, num_tokens)
    return _advanced(recurrence, inputs, before, single[owners], chunks)


@dataclass(frozen=True)
class _Chunks:
    """Chunks of the sequences of a step that have several tokens.

    The blocks are padded with chunks without rows.
    """

    rows: Int32[Array, "blocks chunks tokens"]  # the number of tokens of the step: none
    owners: Int32[Array, "blocks chunks"]  # sequence; the number of sequences: none

    @staticmethod
    def divide(starts: Int32[Array, " sequences_and_one"], num_tokens: int) -> "_Chunks":
        """Divide the sequences of a step into chunks. starts: see States.query_starts."""
        num_sequences = starts.shape[0] - 1
        lengths = jnp.diff(starts)
        counts = jnp.where(lengths > 1, -(-lengths // CHUNK), 0)
        stops = jnp.cumsum(counts)
        most_owners = min(num_sequences, max(num_tokens // 2, 1))
        most = (num_tokens + most_owners * (CHUNK - 1)) // CHUNK
        num_blocks = -(-most // _BLOCK)
        size = min(_BLOCK, most)
        numbers = jnp.arange(num_blocks * size)
        owners = jnp.searchsorted(stops, numbers, side="right").astype(jnp.int32)
        known = jnp.minimum(owners, num_sequences - 1)
        first = stops - counts
        begin = starts[known] + (numbers - first[known]) * CHUNK
        rows = begin[:, None] + jnp.arange(CHUNK)
        is_row = (rows < starts[known + 1][:, None]) & (owners < num_sequences)[:, None]
        rows = jnp.where(is_row, rows, num_tokens)
        return _Chunks(rows.reshape(num_blocks, size, CHUNK), owners.reshape(num_blocks, size))


def _advanced(
    recurrence: Recurrence, inputs: Tokens, before: Array, outputs: Array, chunks: _Chunks
) -> tuple[Array, Array]:
    """Return the outputs with those of the rows of chunks replaced, and the states after them."""
    num_tokens = inputs[0].shape[0]

    def advance(after: Array, chunk: tuple[Array, Any]) -> tuple[Array, Array]:
        owner, prepared = chunk
        state, found = recurrence.advance(jnp.take(after, owner, axis=0, mode="clip"), prepared)
        return after.at[owner].set(state, mode="drop"), found

    def compute(kept: tuple[Array, Array], rows: Array, owners: Array) -> tuple[Array, Array]:
        outputs, after = kept
        taken = (jnp.take(each, rows, axis=0, mode="fill", fill_value=0) for each in inputs)
        after, found = lax.scan(advance, after, (owners, recurrence.prepare(tuple(taken))))
        return outputs.at[rows].set(found, mode="drop"), after

    def block(
        kept: tuple[Array, Array], of_block: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        rows, owners = of_block
        has_rows = rows[0, 0] < num_tokens
        return lax.cond(has_rows, compute, lambda kept, *_: kept, kept, rows, owners), None

    kept, _ = lax.scan(block, (outputs, before), (chunks.rows, chunks.owners))
    return kept


def _widened(flags: Bool[Array, " rows"], ndim: int) -> Bool[Array, "rows *ones"]:
    """Return flags that broadcast against arrays of `ndim` dimensions."""
    return flags.reshape(-1, *[1] * (ndim - 1))
