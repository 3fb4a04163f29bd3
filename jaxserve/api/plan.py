"""The contract between engine/ (which decides) and execution/ (which computes).

The engine describes a step in plain integers, `StepPlan`; a `Runner` packs it, starts it on the
device and hands back a `PendingStep`, whose `wait()` is the only blocking read. Neither side
imports the other. Steps run on the device in the order of their dispatch, so the engine may plan
step n+1 before it has read step n: a row marked `feedback` takes as its input token the one that
the previous step of its slot sampled, which never left the device.

Page 0 of every pool and slot 0 are the null page and the null slot: padding rows read and write
them, sequences never own them.

What is made for every row of every step is a Struct: 16 times cheaper to make than a frozen
dataclass (benchmarks/host.py shows what that comes to).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct

from jaxserve.api.request import PositionLogprobs
from jaxserve.api.sampling_params import SamplingParams

NULL_PAGE = 0
NULL_SLOT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotAssignment:
    """A sequence takes a slot: what the runner must know of it until the slot is taken again.

    prompt_ids and output_ids: its tokens so far (output_ids is not empty after a preemption).
    stop_ids: tokens that end it, banned while fewer than `params.min_tokens` were generated.
    seed: of its random numbers, in [0, 2**64); those of a token depend on the seed and on its
    position in prompt + output alone, so neither neighbours nor a preemption change it.
    """

    slot: int
    params: SamplingParams
    seed: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()


class TableWrite(NamedTuple):
    """Numbers that replace those of a slot's row of the page table, from `column` on.

    What a column means is a matter of its cache group (`api/caches.py`); most are pages.
    """

    column: int
    pages: tuple[int, ...]


class RowPlan(Struct, frozen=True, kw_only=True, gc=False):
    """One sequence's share of a step: the tokens at positions [start, start + num_tokens).

    token_ids: those tokens; empty for `feedback` (then num_tokens is 1).
    table: changes to the slot's row of the page table since its last row (all that it needs, after
    an assignment), in order.
    samples: tokens that the row may yield: 0 unless it reaches the end of the sequence, where it
    samples one. More than one where it ends in drafted tokens, which are the last samples - 1 of
    token_ids: it yields those that the model confirms, and one more. Until that is read, nobody
    knows where the sequence ends, and it has no further row.
    holds: whether it does, and the token is drawn later, by a `DrawPlan`: samples is 0 then.
    targets: the tokens at positions [start + 1, start + 1 + len(targets)) whose
    log-probabilities are wanted (prompt_logprobs); empty when none are.
    """

    slot: int
    start: int
    num_tokens: int
    token_ids: tuple[int, ...]
    table: tuple[TableWrite, ...] = ()
    samples: int = 1
    holds: bool = False
    targets: tuple[int, ...] = ()

    @property
    def feedback(self) -> bool:
        """Whether the input token is the one last sampled in this slot, still on the device."""
        return not self.token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A whole step: at most one row per slot, rows of a single token first.

    programs: those that it may use, from the StepLimits that it was planned with; None for all that
    the runner has. Every runner takes the same program for the same plan, however far its compiler
    is.
    """

    rows: tuple[RowPlan, ...]
    assignments: tuple[SlotAssignment, ...] = ()
    programs: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step, padding not counted."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawPlan:
    """Tokens to draw where steps before have held them, at most `StepLimits.num_draws`.

    rows: of one token, the last of each sequence, which is on the device. masks: for each row a
    bool for each token of the vocabulary, whether it may be drawn, as bits of int32[words], the
    first token's the lowest; None where every token may.
    """

    rows: tuple[RowPlan, ...]
    masks: tuple[np.ndarray | None, ...]
    programs: int | None = None  # see StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step computed, or a draw, aligned with the plan's rows.

    token_ids: the tokens that each row yields, at most RowPlan.samples.
    invalid_rows: rows whose logits were not finite; their tokens mean nothing.
    empty_rows: rows whose request allows no token at all; their tokens mean nothing.
    logprobs and prompt_logprobs: by row index, for the rows that asked; an entry for each token.
    vectors: by row index, where prompts are pooled: float32 numbers for each row that samples,
    which then yields no token.
    """

    token_ids: tuple[tuple[int, ...], ...]
    invalid_rows: frozenset[int] = frozenset()
    empty_rows: frozenset[int] = frozenset()
    logprobs: Mapping[int, tuple[PositionLogprobs, ...]] = field(
        default_factory=dict[int, tuple[PositionLogprobs, ...]]
    )
    prompt_logprobs: Mapping[int, tuple[PositionLogprobs, ...]] = field(
        default_factory=dict[int, tuple[PositionLogprobs, ...]]
    )
    vectors: Mapping[int, bytes] = field(default_factory=dict[int, bytes])


class StepRun(Struct, frozen=True, kw_only=True, gc=False):
    """What the device was given for a step: the program, by name, and its padded size.

    num_tokens: tokens computed, padding not counted. pack_s: what laying the plan out has taken.
    flops, read_bytes, written_bytes: what the step needs at least, of one device, without padding.
    """

    program: str
    num_tokens: int
    padded_tokens: int
    padded_sequences: int
    pack_s: float = 0.0
    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class StepLimits(Struct, frozen=True, kw_only=True, gc=False):
    """What a step may have at most: tokens, and rows; and what a draw may have, of rows.

    programs: those that are compiled, a bit for each; only runners know which is which.
    """

    num_tokens: int
    num_sequences: int
    num_draws: int = 0
    programs: int | None = None


class PendingStep(Protocol):
    """A step under way on the device."""

    @property
    def run(self) -> StepRun:
        """What the device was given."""
        ...

    def is_ready(self) -> bool:
        """Whether the device has finished; takes less than a microsecond."""
        ...

    def wait(self) -> StepResult:
        """Block until the step is done and return its result. Called once."""
        ...


class Runner(Protocol):
    """Computes steps. Implemented by execution/runner.py, and by a fake in host-only tests."""

    @property
    def limits(self) -> StepLimits:
        """What a step may have now. They grow while programs are made, and never shrink."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Steps that may be under way at once, so that the device never waits for the host."""
        ...

    def dispatch(self, plan: StepPlan) -> PendingStep:
        """Start a step without waiting for it. Steps take effect in dispatch order."""
        ...

    def draw(self, plan: DrawPlan) -> PendingStep:
        """Start a draw, as `dispatch` does a step."""
        ...
