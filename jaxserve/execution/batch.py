"""Step input: packed by the host into one int32 array, unpacked on the device.

    needs, rows | a record per sequence | token_ids | positions, row_sequences | targets
                  [sequences, columns]    [tokens]    unless a decode step       if scored

The input of deferred sampling has the same first part, then token bitmasks:

    needs, rows | a record per row, without pages | masks
                  [rows, columns]                   [rows, words]

A record starts with the columns that change every step. The rest stays constant while the sequence
keeps its slot: sampling parameters and page table, which `SlotTable` stores in packed form. Packing
a step therefore costs one gather and a few numbers per row. Floats are stored as their bits, so
that one array needs one transfer. Every step packs a new array, because the device may still be
reading the previous one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxserve.api.limits import MAX_COUNT
from jaxserve.api.plan import RowPlan, SlotAssignment
from jaxserve.execution.shapes import GREEDY, SAMPLE, DeferredSampleShape, Feature, StepShape

# Columns of a record, in order, before its page table. `_STEP` columns change every step.
_STEP = ("kv_length", "query_stop", "feedback", "samples")
_INTS = ("slot", "top_k", "seed_low", "seed_high", "adjusts", "reports", "min_length")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
_NUM_STEP = len(_STEP)
_FIRST_FLOAT = _NUM_STEP + len(_INTS)
_FIRST_PAGE = _FIRST_FLOAT + len(_FLOATS)

# Value of the column `samples` for a row whose sampling is deferred.
_DEFERRED = -1

# Word of a token bitmask that allows every token.
_ALL = -1

# Sampling at lower temperatures is practically greedy, and the scaled logits would overflow.
MIN_TEMPERATURE = 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepInput:
    """Unpacked input of a step. Padding is zeros: null slot, null page."""

    needs: jax.Array  # int32[1], Feature bits that the rows need
    token_ids: jax.Array  # int32[tokens]
    positions: jax.Array  # int32[tokens]
    row_sequences: jax.Array  # int32[tokens]
    targets: jax.Array  # int32[tokens], the next token of the prompt
    query_starts: jax.Array  # int32[sequences + 1]
    kv_lengths: jax.Array  # int32[sequences]
    slots: jax.Array  # int32[sequences]
    feedback: jax.Array  # int32[sequences], 1: the input token is the slot's last token
    samples: jax.Array  # int32[sequences], how many tokens the sequence may yield
    is_deferred: jax.Array  # int32[sequences], 1: sampling is deferred
    page_table: jax.Array  # int32[sequences, pages]
    top_k: jax.Array  # int32[sequences], 0: all
    seed_low: jax.Array  # int32[sequences], bits of a uint32
    seed_high: jax.Array  # int32[sequences], bits of a uint32
    adjusts: jax.Array  # int32[sequences], 1: the slot state adjusts logits
    reports: jax.Array  # int32[sequences], 1: report log-probabilities
    min_length: jax.Array  # int32[sequences], shorter sequences may not stop
    temperature: jax.Array  # float32[sequences], 0: greedy
    top_p: jax.Array  # float32[sequences]
    min_p: jax.Array  # float32[sequences]
    presence: jax.Array  # float32[sequences]
    frequency: jax.Array  # float32[sequences]
    repetition: jax.Array  # float32[sequences]

    def first(self, count: int) -> "StepInput":
        """Return the input of the first `count` sequences; per-token fields are unchanged."""
        of_sequences = {
            field.name: getattr(self, field.name)[:count]
            for field in fields(self)
            if field.name not in _NOT_OF_SEQUENCES
        }
        return replace(self, **of_sequences)


_NOT_OF_SEQUENCES = frozenset(
    ("needs", "token_ids", "positions", "row_sequences", "targets", "query_starts")
)


class _Layout(NamedTuple):
    """Offsets of the parts of a packed array; see the module's docstring."""

    columns: int
    tokens: int
    positions: int
    row_sequences: int
    targets: int
    size: int


@lru_cache(maxsize=256)
def _layout(shape: StepShape) -> _Layout:
    columns = _FIRST_PAGE + shape.pages
    tokens = 2 + shape.sequences * columns
    positions = tokens + shape.tokens
    row_sequences = positions + (0 if shape.is_decode else shape.tokens)
    targets = row_sequences + (0 if shape.is_decode else shape.tokens)
    size = targets + (shape.tokens if Feature.PROMPT_LOGPROBS in shape.features else 0)
    return _Layout(columns, tokens, positions, row_sequences, targets, size)


def packed_size(shape: StepShape) -> int:
    """Return the length of the packed array for a step shape."""
    return _layout(shape).size


def packed_deferred_size(shape: DeferredSampleShape, *, vocab_size: int) -> int:
    """Return the length of the packed array for deferred sampling."""
    return 2 + shape.rows * (_FIRST_PAGE + mask_words(vocab_size))


def mask_words(vocab_size: int) -> int:
    """Return the number of int32 words in a token bitmask."""
    return -(-vocab_size // 32)


def unpack(packed: jax.Array, shape: StepShape) -> StepInput:
    """Split a packed array into its fields; traced."""
    layout = _layout(shape)
    records = packed[2 : layout.tokens].reshape(shape.sequences, layout.columns)
    found = _fields(records)
    kv_lengths = found["kv_lengths"]

    def tokens(start: int) -> jax.Array:
        return packed[start : start + shape.tokens]

    if shape.is_decode:
        rows = jnp.arange(shape.tokens, dtype=jnp.int32)
        positions = jnp.maximum(kv_lengths - 1, 0)
        row_sequences = jnp.where(rows < packed[1], rows, 0)
    else:
        positions, row_sequences = tokens(layout.positions), tokens(layout.row_sequences)
    is_scored = Feature.PROMPT_LOGPROBS in shape.features
    return StepInput(
        needs=packed[:1],
        token_ids=tokens(layout.tokens),
        positions=positions,
        row_sequences=row_sequences,
        targets=tokens(layout.targets) if is_scored else jnp.zeros(shape.tokens, jnp.int32),
        query_starts=jnp.pad(found.pop("query_stop"), (1, 0)),
        page_table=records[:, _FIRST_PAGE:],
        **found,
    )


def unpack_deferred(
    packed: jax.Array, shape: DeferredSampleShape, *, vocab_size: int
) -> tuple[StepInput, jax.Array]:
    """Split the packed input of deferred sampling into fields and token bitmasks.

    The bitmasks are int32[rows, words]. The token and page fields are empty.
    """
    start = 2 + shape.rows * _FIRST_PAGE
    found = _fields(packed[2:start].reshape(shape.rows, _FIRST_PAGE))
    masks = packed[start:].reshape(shape.rows, mask_words(vocab_size))
    del found["query_stop"]
    empty = jnp.zeros(0, jnp.int32)
    inputs = StepInput(
        needs=packed[:1],
        token_ids=empty,
        positions=empty,
        row_sequences=empty,
        targets=empty,
        query_starts=empty,
        page_table=jnp.zeros((shape.rows, 0), jnp.int32),
        **found,
    )
    return inputs, masks


def unpack_masks(masks: jax.Array, *, vocab_size: int) -> jax.Array:
    """Return token bitmasks as booleans: bool[rows, vocab]."""
    bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return bits.reshape(masks.shape[0], -1)[:, :vocab_size] != 0


def _fields(records: jax.Array) -> dict[str, jax.Array]:
    """Split records into the fields of StepInput, and `query_stop`."""
    ints = dict(zip((*_STEP, *_INTS), records[:, :_FIRST_FLOAT].T, strict=True))
    bits = records[:, _FIRST_FLOAT:_FIRST_PAGE]
    floats = dict(zip(_FLOATS, lax.bitcast_convert_type(bits, jnp.float32).T, strict=True))
    kv_lengths, slots, samples = (ints.pop(name) for name in ("kv_length", "slot", "samples"))
    return {
        "kv_lengths": kv_lengths,
        "slots": slots,
        "samples": jnp.maximum(samples, 0),
        "is_deferred": (samples == _DEFERRED).astype(jnp.int32),
        **ints,
        **floats,
    }


class SlotTable:
    """Host copy of each slot's record, and the features its sequence needs.

    records: int32[slots, columns]; ints, floats and page_table are views of it. The per-step
    columns are undefined.
    """

    def __init__(self, *, num_slots: int, pages: int) -> None:
        self.records = np.zeros((num_slots, _FIRST_PAGE + pages), np.int32)
        self.records[:, _NUM_STEP] = np.arange(num_slots)
        self.ints = self.records[:, _NUM_STEP + 1 : _FIRST_FLOAT]
        self.floats = self.records[:, _FIRST_FLOAT:_FIRST_PAGE].view(np.float32)
        self.page_table = self.records[:, _FIRST_PAGE:]
        self._needs = np.zeros(num_slots, np.int8)
        self.num_logprobs: list[int | None] = [None] * num_slots
        self.named: list[tuple[int, ...]] = [()] * num_slots
        self.num_prompt_logprobs = [0] * num_slots

    def assign(self, assignment: SlotAssignment, *, is_processed: bool = False) -> None:
        """Assign a slot to a sequence. is_processed: a logits processor applies to it."""
        slot, params = assignment.slot, assignment.params
        adjusts = params.adjusts_logits or is_processed
        seed = np.array([assignment.seed & 0xFFFFFFFF, assignment.seed >> 32], np.uint32)
        min_length = len(assignment.prompt_ids) + params.min_tokens if params.min_tokens else 0
        temperature = params.temperature
        if not params.is_greedy:
            temperature = max(temperature, MIN_TEMPERATURE)
        self.ints[slot] = (
            max(params.top_k, 0),
            *seed.view(np.int32),
            adjusts,
            params.logprobs is not None,
            min_length,
        )
        self.floats[slot] = (
            temperature,
            params.top_p,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )
        self.num_logprobs[slot] = _all_if_negative(params.logprobs)
        self.named[slot] = params.logprob_token_ids
        self.num_prompt_logprobs[slot] = _all_if_negative(params.prompt_logprobs) or 0
        needs = GREEDY if params.is_greedy else SAMPLE
        if adjusts:
            needs |= Feature.ADJUST
        if params.logprobs is not None:
            needs |= Feature.LOGPROBS
        self._needs[slot] = needs

    def update(self, row: RowPlan) -> None:
        """Write the new entries of a row's page table."""
        for column, pages in row.table:
            self.page_table[row.slot, column : column + len(pages)] = pages

    def needs(self, rows: "Rows") -> Feature:
        """Return the features that a program must have for these rows."""
        slots = rows.slots
        if rows.num_sampled != rows.num_rows or rows.has_drafts:
            slots = slots[rows.samples > 0]
        needs = int(np.bitwise_or.reduce(self._needs[slots]))
        if rows.has_targets:
            needs |= Feature.PROMPT_LOGPROBS
        if rows.has_drafts:
            needs |= Feature.DRAFTS
        return Feature(needs)


def _all_if_negative(count: int | None) -> int | None:
    """Return the number of alternatives to report; -1 means all."""
    return MAX_COUNT if count == -1 else count


class Rows:
    """Rows of a plan as columns, each computed in one pass.

    slots, starts, samples: int[rows]. lengths: int[rows], the number of tokens. tokens: the tokens
    of all rows in order, 0 for a row with feedback.
    """

    def __init__(self, rows: tuple[RowPlan, ...]) -> None:
        self.rows = rows
        self.num_rows = num_rows = len(rows)
        self.slots = np.fromiter(map(attrgetter("slot"), rows), np.intp, num_rows)
        self.starts = np.fromiter(map(attrgetter("start"), rows), np.intp, num_rows)
        # Through bytes: twice as fast as an array from a list.
        self.samples = np.frombuffer(bytes([row.samples for row in rows]), np.uint8)
        self.num_sampled = int(self.samples.sum())
        self.has_drafts = bool(self.samples.max() > 1)
        self.has_targets = any(map(attrgetter("targets"), rows))
        # Rows with one token come first, so the last row decides.
        self.is_decode = rows[-1].num_tokens == 1
        if self.is_decode:
            self.lengths = np.ones(num_rows, np.intp)
            self.tokens = [row.token_ids[0] if row.token_ids else 0 for row in rows]
        else:
            self.lengths = np.array([row.num_tokens for row in rows])
            self.tokens = [*chain.from_iterable([row.token_ids or (0,) for row in rows])]
        self.num_tokens = len(self.tokens)


def pack(rows: Rows, needs: Feature, shape: StepShape, table: SlotTable) -> np.ndarray:
    """Pack a step into int32[packed_size(shape)]. Padding is zeros.

    needs: the features that the rows need.
    """
    layout, num_rows, num_tokens = _layout(shape), rows.num_rows, rows.num_tokens
    packed = np.zeros(layout.size, np.int32)
    packed[:2] = needs, num_rows
    records = packed[2 : layout.tokens].reshape(shape.sequences, layout.columns)
    live = records[:num_rows]
    # Unlike "raise", mode "clip" writes to `out` without a copy.
    np.take(table.records, rows.slots, axis=0, out=live, mode="clip")
    stops = np.cumsum(rows.lengths)
    live[:, 0] = rows.starts + rows.lengths
    live[:, 1] = stops
    live[:, 2] = [not row.token_ids for row in rows.rows]
    live[:, 3] = rows.samples
    if not rows.samples.all():
        live[[row.is_deferred for row in rows.rows], 3] = _DEFERRED
    records[num_rows:, 1] = num_tokens
    packed[layout.tokens : layout.tokens + num_tokens] = rows.tokens
    if not shape.is_decode:
        sequences = np.repeat(np.arange(num_rows), rows.lengths)
        positions = np.arange(num_tokens) + (rows.starts + rows.lengths - stops)[sequences]
        packed[layout.positions : layout.positions + num_tokens] = positions
        packed[layout.row_sequences : layout.row_sequences + num_tokens] = sequences
    if rows.has_targets:
        for row, stop in zip(rows.rows, stops.tolist(), strict=True):
            first = layout.targets + stop - row.num_tokens
            packed[first : first + len(row.targets)] = row.targets
    return packed


def pack_deferred(
    rows: Rows,
    masks: Iterable[np.ndarray | None],
    needs: Feature,
    shape: DeferredSampleShape,
    table: SlotTable,
    *,
    vocab_size: int,
) -> np.ndarray:
    """Pack deferred sampling; padding is zeros. masks: as in DeferredSamplePlan."""
    num_rows, num_words = rows.num_rows, mask_words(vocab_size)
    start = 2 + shape.rows * _FIRST_PAGE
    packed = np.zeros(packed_deferred_size(shape, vocab_size=vocab_size), np.int32)
    packed[:2] = needs, num_rows
    live = packed[2:start].reshape(shape.rows, _FIRST_PAGE)[:num_rows]
    live[:] = table.records[rows.slots, :_FIRST_PAGE]
    live[:, 0] = rows.starts + rows.lengths
    live[:, 1:4] = 0, 0, 1
    words = packed[start:].reshape(shape.rows, num_words)
    for row, mask in zip(words[:num_rows], masks, strict=True):
        row[:] = _ALL if mask is None else mask[:num_words]
    return packed
