"""Slot state on the device, donated to each step and returned by it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxserve.api.plan import SlotAssignment
from jaxserve.api.sampling_params import (
    MAX_BAD_WORD_SEQUENCES,
    MAX_BAD_WORD_TOKENS,
    MAX_EOS_IDS,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_STOP_TOKEN_IDS,
)
from jaxserve.execution.batch import StepInput

type SlotRow = np.ndarray | np.generic

NO_EXTRA = np.zeros(0, np.float32)

# Stop ids of the request, and end-of-sequence ids of the model.
MAX_STOP_IDS = MAX_STOP_TOKEN_IDS + MAX_EOS_IDS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotState[Leaf]:
    """One row per slot; slot 0 is the null slot.

    The fields from `seen` on are used only by some sequences. Such a sequence overwrites its whole
    row first, and others do not read theirs, so no data of a slot's previous owner is visible.
    Leaf: jax.Array on the device, ShapeDtypeStruct before allocation, numpy arrays for one row on
    the host.
    """

    last_token: Leaf  # int32[slots], read by the next `feedback` row
    deferred_hidden: Leaf  # [slots, embed], hidden state of deferred sampling
    seen: Leaf  # bool[slots, vocab], whether the prompt has the token
    counts: Leaf  # int32[slots, vocab], how often it was generated
    bias: Leaf  # float32[slots, vocab], added to logits; -inf forbids
    stop_ids: Leaf  # int32[slots, MAX_STOP_IDS], banned by min_tokens; vocab_size pads
    bad_words: Leaf  # int32[slots, sequences, tokens], each ending in the last column
    bad_lengths: Leaf  # int32[slots, sequences], 0 pads
    recent: Leaf  # int32[slots, tokens - 1], the newest tokens, the last one last
    named: Leaf  # int32[slots, MAX_LOGPROB_TOKEN_IDS], tokens to report; 0 pads
    extra: Leaf  # float32[slots, LogitsProcessors.row_size]

    def input_tokens(self: "SlotState[jax.Array]", inputs: StepInput) -> jax.Array:
        """Return the token of each row, int32[tokens]; with feedback its slot's last token."""
        fed_back = self.last_token[inputs.slots][inputs.row_sequences]
        return jnp.where(inputs.feedback[inputs.row_sequences] != 0, fed_back, inputs.token_ids)


def abstract_state(
    *,
    num_slots: int,
    vocab_size: int,
    embed: int = 0,
    dtype: DTypeLike = np.float32,
    extra_size: int = 0,
) -> SlotState[jax.ShapeDtypeStruct]:
    """Describe the state of `num_slots` slots, including slot 0, before it exists.

    embed and dtype: of the hidden states that the head reads. extra_size: row size of the engine's
    logits processors.
    """

    def array(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_slots, *shape), dtype)

    return SlotState(
        last_token=array(np.int32),
        deferred_hidden=array(dtype, embed),
        seen=array(np.bool_, vocab_size),
        counts=array(np.int32, vocab_size),
        bias=array(np.float32, vocab_size),
        stop_ids=array(np.int32, MAX_STOP_IDS),
        bad_words=array(np.int32, MAX_BAD_WORD_SEQUENCES, MAX_BAD_WORD_TOKENS),
        bad_lengths=array(np.int32, MAX_BAD_WORD_SEQUENCES),
        recent=array(np.int32, MAX_BAD_WORD_TOKENS - 1),
        named=array(np.int32, MAX_LOGPROB_TOKEN_IDS),
        extra=array(np.float32, extra_size),
    )


def slot_row(
    assignment: SlotAssignment,
    *,
    vocab_size: int,
    deferred_hidden: SlotRow = NO_EXTRA,
    extra: SlotRow = NO_EXTRA,
) -> SlotState[SlotRow]:
    """Return a sequence's row of SlotState, in host memory.

    deferred_hidden: initial hidden state. extra: row of the engine's logits processors.
    """
    params = assignment.params
    seen = np.zeros(vocab_size, np.bool_)
    seen[np.asarray(assignment.prompt_ids, np.int32)] = True
    counts = np.bincount(np.asarray(assignment.output_ids, np.int32), minlength=vocab_size).astype(
        np.int32
    )
    bias = np.zeros(vocab_size, np.float32)
    if params.allowed_token_ids is not None:
        bias[:] = -np.inf
        bias[np.asarray(params.allowed_token_ids, np.int32)] = 0.0
    if params.logit_bias:
        num_biases = len(params.logit_bias)
        tokens = np.fromiter(params.logit_bias, np.int32, num_biases)
        bias[tokens] += np.fromiter(params.logit_bias.values(), np.float32, num_biases)
    stop_ids = np.full(MAX_STOP_IDS, vocab_size, np.int32)
    stop_ids[: len(assignment.stop_ids)] = assignment.stop_ids
    bad_words = np.zeros((MAX_BAD_WORD_SEQUENCES, MAX_BAD_WORD_TOKENS), np.int32)
    bad_lengths = np.zeros(MAX_BAD_WORD_SEQUENCES, np.int32)
    for i, word in enumerate(assignment.bad_word_ids):
        bad_words[i, MAX_BAD_WORD_TOKENS - len(word) :] = word
        bad_lengths[i] = len(word)
    recent = np.full(MAX_BAD_WORD_TOKENS - 1, vocab_size, np.int32)
    newest = (assignment.prompt_ids + assignment.output_ids)[-len(recent) :]
    recent[len(recent) - len(newest) :] = newest
    named = np.zeros(MAX_LOGPROB_TOKEN_IDS, np.int32)
    named[: len(params.logprob_token_ids)] = params.logprob_token_ids
    return SlotState(
        last_token=np.int32(0),
        deferred_hidden=deferred_hidden,
        seen=seen,
        counts=counts,
        bias=bias,
        stop_ids=stop_ids,
        bad_words=bad_words,
        bad_lengths=bad_lengths,
        recent=recent,
        named=named,
        extra=extra,
    )


def assign_slot(
    state: SlotState[jax.Array], slot: jax.Array, row: SlotState[jax.Array]
) -> SlotState[jax.Array]:
    """Overwrite one slot's row of the state; row: from `slot_row`."""
    updated: SlotState[jax.Array] = jax.tree.map(
        lambda rows, new: rows.at[slot].set(new, mode="drop"), state, row
    )
    return updated


def observe(
    state: SlotState[jax.Array], *, slots: jax.Array, tokens: jax.Array, counts: jax.Array
) -> SlotState[jax.Array]:
    """Store new tokens in the slots whose sequences adjust their logits.

    slots: int32[sequences]. tokens: int32[sequences, yields], of which the first `counts` are
    valid. counts: int32[sequences], 0 for padding and for slots that do not adjust.
    """
    num_slots, vocab_size = state.counts.shape
    num_recent, num_yields = state.recent.shape[1], tokens.shape[1]
    # Out-of-bounds writes are dropped, so rows that do not adjust change nothing.
    is_yielded = jnp.arange(num_yields) < counts[:, None]
    targets = jnp.where(is_yielded, slots[:, None], num_slots)
    joined = jnp.concatenate([state.recent[slots], tokens], axis=1)
    newest = counts[:, None] + jnp.arange(num_recent)
    return replace(
        state,
        counts=state.counts.at[targets, jnp.minimum(tokens, vocab_size - 1)].add(1, mode="drop"),
        recent=state.recent.at[jnp.where(counts > 0, slots, num_slots)].set(
            jnp.take_along_axis(joined, newest, axis=1), mode="drop"
        ),
    )
