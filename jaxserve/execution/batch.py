"""A step's input: packed by the host into one int32 and one float32 array, unpacked by the step.

Packing is plain numpy. What does not change while a sequence holds its slot (its sampling
parameters, its page table) lives in `SlotTable` and is gathered by slot, so that a step costs the
host a few numbers per row. Fresh arrays are packed for every step: the device may still be
reading the last ones.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from jaxserve.execution.shapes import StepShape, Variant
from jaxserve.plan import RowPlan, SlotAssignment

# Per sequence, in the order they are packed.
_INTS = ("top_k", "seed_low", "seed_high", "adjusts", "min_length")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")

# Draws at lower temperatures are greedy in all but name, and logits over them overflow.
MIN_TEMPERATURE = 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepInput:
    """What the host tells the device about a step; padding is zeros (slot 0, page 0)."""

    variant: jax.Array  # int32[1], the Variant the rows need, at most the shape's
    token_ids: jax.Array  # int32[tokens]
    positions: jax.Array  # int32[tokens]
    row_sequences: jax.Array  # int32[tokens]
    targets: jax.Array  # int32[tokens], the token that follows in the prompt
    query_starts: jax.Array  # int32[sequences + 1]
    kv_lengths: jax.Array  # int32[sequences]
    slots: jax.Array  # int32[sequences]
    feedback: jax.Array  # int32[sequences], 1: the input token is the slot's last token
    samples: jax.Array  # int32[sequences], 1: a token is drawn
    page_table: jax.Array  # int32[sequences, pages]
    top_k: jax.Array  # int32[sequences], 0: all
    seed_low: jax.Array  # int32[sequences], bits of a uint32
    seed_high: jax.Array  # int32[sequences], bits of a uint32
    adjusts: jax.Array  # int32[sequences], 1: logits are adjusted by the slot's memory
    min_length: jax.Array  # int32[sequences], shorter sequences may not stop
    temperature: jax.Array  # float32[sequences], 0: greedy
    top_p: jax.Array  # float32[sequences]
    min_p: jax.Array  # float32[sequences]
    presence: jax.Array  # float32[sequences]
    frequency: jax.Array  # float32[sequences]
    repetition: jax.Array  # float32[sequences]


def _int_fields(shape: StepShape) -> dict[str, tuple[int, ...]]:
    tokens, sequences = (shape.tokens,), (shape.sequences,)
    return {
        "variant": (1,),
        "token_ids": tokens,
        "positions": tokens,
        "row_sequences": tokens,
        "targets": tokens,
        "query_starts": (shape.sequences + 1,),
        "kv_lengths": sequences,
        "slots": sequences,
        "feedback": sequences,
        "samples": sequences,
        "page_table": (shape.sequences, shape.pages),
        **dict.fromkeys(_INTS, sequences),
    }


def _float_fields(shape: StepShape) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(_FLOATS, (shape.sequences,))


def packed_sizes(shape: StepShape) -> tuple[int, int]:
    """Return the lengths of the packed int32 and float32 arrays of a shape."""
    ints = sum(int(np.prod(size)) for size in _int_fields(shape).values())
    return ints, len(_FLOATS) * shape.sequences


def unpack(ints: jax.Array, floats: jax.Array, shape: StepShape) -> StepInput:
    """Cut the two packed arrays into their fields; traced, so it costs nothing at run time."""
    fields: dict[str, jax.Array] = {}
    for packed, sizes in ((ints, _int_fields(shape)), (floats, _float_fields(shape))):
        start = 0
        for name, size in sizes.items():
            length = int(np.prod(size))
            fields[name] = lax.slice(packed, (start,), (start + length,)).reshape(size)
            start += length
    return StepInput(**fields)


class SlotTable:
    """The host's memory of each slot: its page table, its parameters and what it needs done."""

    def __init__(self, *, num_slots: int, pages: int) -> None:
        self.page_table = np.zeros((num_slots, pages), np.int32)
        self.ints = np.zeros((num_slots, len(_INTS)), np.int32)
        self.floats = np.zeros((num_slots, len(_FLOATS)), np.float32)
        self.variants = [Variant.GREEDY] * num_slots
        self.num_logprobs: list[int | None] = [None] * num_slots
        self.num_prompt_logprobs = [0] * num_slots

    def assign(self, assignment: SlotAssignment) -> None:
        """Give a slot to a sequence."""
        slot, params = assignment.slot, assignment.params
        seed = np.array([assignment.seed & 0xFFFFFFFF, assignment.seed >> 32], np.uint32)
        min_length = len(assignment.prompt_ids) + params.min_tokens if params.min_tokens else 0
        temperature = params.temperature
        if not params.is_greedy:
            temperature = max(temperature, MIN_TEMPERATURE)
        self.ints[slot] = (
            max(params.top_k, 0),
            *seed.view(np.int32),
            params.adjusts_logits,
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
        self.num_logprobs[slot] = params.logprobs
        self.num_prompt_logprobs[slot] = params.prompt_logprobs or 0
        if params.adjusts_logits or params.logprobs is not None:
            self.variants[slot] = Variant.FULL
        else:
            self.variants[slot] = Variant.GREEDY if params.is_greedy else Variant.SAMPLE

    def extend(self, row: RowPlan) -> None:
        """Append a row's new pages to its slot's page table."""
        end = row.first_new_page + len(row.new_pages)
        self.page_table[row.slot, row.first_new_page : end] = row.new_pages

    def variant_for(self, rows: tuple[RowPlan, ...]) -> Variant:
        """Return the least variant that does what every row needs."""
        if any(row.targets for row in rows):
            return Variant.SCORE
        variants = self.variants
        return max((variants[row.slot] for row in rows if row.samples), default=Variant.GREEDY)


class Packed(NamedTuple):
    """A step laid out for the device, and what was counted on the way.

    ints, floats: see `packed_sizes`. starts, lengths: of each row, in tokens. num_sampled: rows
    that draw a token.
    """

    ints: np.ndarray
    floats: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    num_tokens: int
    num_sampled: int


def pack(rows: tuple[RowPlan, ...], variant: Variant, shape: StepShape, table: SlotTable) -> Packed:
    """Lay out a step that needs `variant`."""
    num_rows = len(rows)
    slots = [row.slot for row in rows]
    lengths = np.array([row.num_tokens for row in rows], np.int32)
    starts = np.array([row.start for row in rows], np.int32)
    ends = np.array(list(accumulate(row.num_tokens for row in rows)), np.int32)
    num_tokens = int(ends[-1])

    int_size, float_size = packed_sizes(shape)
    ints, floats = np.zeros(int_size, np.int32), np.zeros(float_size, np.float32)
    fields = _views(ints, _int_fields(shape))
    fields["variant"][:] = variant
    if num_tokens == num_rows:
        fields["token_ids"][:num_rows] = [row.token_ids[0] if row.token_ids else 0 for row in rows]
        fields["positions"][:num_rows] = starts
        fields["row_sequences"][:num_rows] = np.arange(num_rows)
    else:
        fields["token_ids"][:num_tokens] = [
            token for row in rows for token in (row.token_ids or (0,))
        ]
        sequences = np.repeat(np.arange(num_rows), lengths)
        fields["positions"][:num_tokens] = (
            np.arange(num_tokens) + (starts - ends + lengths)[sequences]
        )
        fields["row_sequences"][:num_tokens] = sequences
    if variant is Variant.SCORE:
        for row, end in zip(rows, ends, strict=True):
            first = int(end) - row.num_tokens
            fields["targets"][first : first + len(row.targets)] = row.targets
    fields["query_starts"][1 : num_rows + 1] = ends
    fields["query_starts"][num_rows + 1 :] = num_tokens
    fields["kv_lengths"][:num_rows] = starts + lengths
    fields["slots"][:num_rows] = slots
    fields["feedback"][:num_rows] = [row.feedback for row in rows]
    samples = [row.samples for row in rows]
    fields["samples"][:num_rows] = samples
    fields["page_table"][:num_rows] = table.page_table[slots]
    per_slot = table.ints[slots]
    for column, name in enumerate(_INTS):
        fields[name][:num_rows] = per_slot[:, column]
    float_view = floats.reshape(len(_FLOATS), shape.sequences)
    float_view[:, :num_rows] = table.floats[slots].T
    return Packed(ints, floats, starts, lengths, num_tokens, sum(samples))


def _views(packed: np.ndarray, sizes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the fields of a packed array as views of it."""
    views, start = {}, 0
    for name, size in sizes.items():
        length = int(np.prod(size))
        views[name] = packed[start : start + length].reshape(size)
        start += length
    return views
