"""Interface between engine/, which schedules steps, and execution/, which computes them.

The engine describes a step as a `StepPlan` of plain integers. A `Runner` packs it, starts it on
the device and returns a `PendingStep`, whose `wait()` blocks until the result is there. Neither
package imports the other. Steps run on the device in dispatch order, so the engine may plan step
n+1 before it has read step n. The input token of a row with `feedback` is the token last sampled
in its slot, which is still on the device.

Page 0 of every pool and slot 0 are the null page and the null slot: padding rows read and write
them, and no sequence owns them.

Types of which every step creates one per row are Structs: creating one is 16 times cheaper than
creating a frozen dataclass (benchmarks/host.py measures the effect).
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
    """Assignment of a slot to a sequence, valid until the slot is assigned again.

    prompt_ids and output_ids: tokens so far (output_ids is not empty after a preemption).
    stop_ids: tokens that end the sequence, banned until `params.min_tokens` tokens were generated.
    seed: seed of its random numbers, in [0, 2**64). The random numbers of a token depend only on
    the seed and the token's position, so neither other sequences nor preemptions change it.
    """

    slot: int
    params: SamplingParams
    seed: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()


class TableWrite(NamedTuple):
    """Entries to write to a slot's row of the page table, starting at `column`.

    The meaning of a column depends on its cache group (`api/caches.py`); most are pages.
    """

    column: int
    pages: tuple[int, ...]


class RowPlan(Struct, frozen=True, kw_only=True, gc=False):
    """Row of a step: the tokens of one sequence at positions [start, start + num_tokens).

    token_ids: these tokens; empty for `feedback` (then num_tokens is 1).
    table: writes to the slot's row of the page table since the sequence's last row, in order.
    After an assignment, all entries that the row needs.
    samples: the most tokens that the row may yield. 0 if the row does not reach the end of the
    sequence, otherwise 1. With draft tokens, which are the last samples - 1 of token_ids, the row
    yields the accepted ones and one more. The sequence gets no further row before this is read.
    is_deferred: whether the row reaches the end of the sequence and its sampling is deferred to a
    `DeferredSamplePlan`; then samples is 0.
    targets: the tokens at positions [start + 1, start + 1 + len(targets)) whose log-probabilities
    are requested (prompt_logprobs); empty if none are.
    """

    slot: int
    start: int
    num_tokens: int
    token_ids: tuple[int, ...]
    table: tuple[TableWrite, ...] = ()
    samples: int = 1
    is_deferred: bool = False
    targets: tuple[int, ...] = ()

    @property
    def feedback(self) -> bool:
        """Whether the input token is the one last sampled in this slot, on the device."""
        return not self.token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A step: at most one row per slot, single-token rows first.

    programs: the programs that the step may use, as in the StepLimits that it was planned with;
    None for all. So all hosts choose the same program for a plan, even if some of them have
    compiled more programs than others.
    """

    rows: tuple[RowPlan, ...]
    assignments: tuple[SlotAssignment, ...] = ()
    programs: int | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the step computes, without padding."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredSamplePlan:
    """Deferred sampling for rows of earlier steps.

    rows: a single-token row for the last token of each sequence, whose hidden state is on the
    device. At most `StepLimits.num_deferred_samples` rows.
    masks: for each row the token bitmask, int32[words], with the first token in the lowest bit; a
    set bit allows the token. None allows every token.
    """

    rows: tuple[RowPlan, ...]
    masks: tuple[np.ndarray | None, ...]
    programs: int | None = None  # see StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Result of a step or of deferred sampling, aligned with the plan's rows.

    token_ids: the tokens that each row yields, at most RowPlan.samples.
    invalid_rows: rows whose logits were not finite; ignore their tokens.
    empty_rows: rows whose request allows no token at all; ignore their tokens.
    logprobs and prompt_logprobs: by row index, for the rows that requested them; one entry per
    token.
    vectors: by row index, for pooling models: float32 bytes for each row that reaches the end of
    its prompt, which then yields no token.
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
    """Description of a dispatched step: its program's name and padded size, and its cost.

    num_tokens: tokens without padding. pack_s: seconds spent on packing the plan. flops,
    read_bytes, written_bytes: lower bounds for one device, without padding.
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
    """Limits of a step (tokens and rows), and of deferred sampling (num_deferred_samples rows).

    programs: bitmask of the compiled programs; only runners interpret it.
    """

    num_tokens: int
    num_sequences: int
    num_deferred_samples: int = 0
    programs: int | None = None


class PendingStep(Protocol):
    """A dispatched step."""

    @property
    def run(self) -> StepRun:
        """Description of the dispatched step."""
        ...

    def is_ready(self) -> bool:
        """Whether the device has finished the step. Takes less than a microsecond."""
        ...

    def wait(self) -> StepResult:
        """Block until the step is done, and return its result. Call at most once."""
        ...


class Runner(Protocol):
    """Executes steps. Implemented by execution/runner.py, and by a fake in host-only tests."""

    @property
    def limits(self) -> StepLimits:
        """Current step limits. They only grow, as programs finish compiling."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Number of steps that may be in flight, so that the device never waits for the host."""
        ...

    def dispatch(self, plan: StepPlan) -> PendingStep:
        """Start a step without waiting for it. Steps run in dispatch order."""
        ...

    def sample_deferred(self, plan: DeferredSamplePlan) -> PendingStep:
        """Start deferred sampling without waiting for it, in order with the steps."""
        ...
