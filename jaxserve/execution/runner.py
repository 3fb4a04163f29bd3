"""Model runner: runs programs and moves data between host and device."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from msgspec import structs

from jaxserve.api.plan import (
    NULL_SLOT,
    DeferredSamplePlan,
    RowPlan,
    SlotAssignment,
    StepLimits,
    StepPlan,
    StepResult,
    StepRun,
)
from jaxserve.api.request import PositionLogprobs, TokenLogprob
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.execution.batch import Rows, SlotTable, pack, pack_deferred
from jaxserve.execution.caches import KVCache
from jaxserve.execution.context import StepContext
from jaxserve.execution.cost import StepCosts
from jaxserve.execution.heads.pool import PoolOutput
from jaxserve.execution.heads.sample import SampleStatus, StepOutput
from jaxserve.execution.program_pool import ProgramPool
from jaxserve.execution.programs import Helper, Output, State
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import (
    GREEDY,
    POOL,
    DeferredSampleShape,
    Feature,
    ShapeTable,
    StepShape,
)
from jaxserve.execution.state import slot_row
from jaxserve.models import Params

# Status and count of a row that yields one token, the common case.
_ONE_SAMPLED = np.array([[SampleStatus.SAMPLED], [1]], np.int32)


class ModelRunner:
    """Owner of the device's arrays: parameters, KV cache, slot state. Implements plan.Runner.

    Cache and state are donated to every step and replaced by its results.

    programs: the programs of `shapes`. The constructor waits for the first shape. A step uses the
    smallest suitable shape among the compiled ones. clock: the engine's clock, in seconds.
    """

    def __init__(
        self,
        params: Params,
        *,
        context: StepContext,
        programs: ProgramPool,
        shapes: ShapeTable,
        num_slots: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leaves = tuple(jax.tree.leaves(params))
        self._clock = clock
        self._programs = programs
        self._all_shapes = shapes
        self._vocab_size = context.model.vocab_size
        self._processors = context.sampling.processors
        hidden_dtype = context.attention.dtype
        self._no_hidden = np.zeros(context.model.embed, hidden_dtype)
        # Tokens that fit into every group's columns, for any page size.
        self._null_tokens = min(group.max_pages for group in context.caches.groups)
        self._table = SlotTable(num_slots=num_slots, pages=shapes.shapes[0].pages)
        self._costs = StepCosts(context.model, params=params, attention=context.attention)
        self._cache: KVCache
        self._state: State[jax.Array]
        # Shape tables of the usable programs, by bitmask over this order.
        self._order: tuple[StepShape | DeferredSampleShape, ...] = (
            *shapes.shapes,
            *shapes.deferred,
        )
        self._tables: dict[int, ShapeTable] = {}
        self._cache, self._state = programs.get(Helper.ALLOCATE)()
        programs.get(shapes.shapes[0])
        self._take_over()

    @property
    def max_in_flight(self) -> int:
        """Two: one step on the device and one queued behind it; see plan.Runner."""
        return 2

    @property
    def limits(self) -> StepLimits:
        """Current limits of a step; see plan.Runner."""
        if self._num_programs != self._programs.num_made:
            self._take_over()
        return self._limits

    def dispatch(self, plan: StepPlan) -> "PendingResult | PendingVectors":
        """Start a step; see plan.Runner."""
        start_s = self._clock()
        for assignment in plan.assignments:
            self._assign(assignment)
        rows, table = Rows(plan.rows), self._table
        for row in plan.rows:
            if row.table:
                table.update(row)
        needs = POOL if self._all_shapes.pools else table.needs(rows)
        shape = self._table_of(plan.programs).choose(
            num_tokens=rows.num_tokens, num_sequences=rows.num_rows, needs=needs
        )
        packed = pack(rows, needs, shape, table)
        cost = self._costs.count(
            rows.starts,
            rows.lengths,
            num_tokens=rows.num_tokens,
            num_sampled=0 if needs == POOL else rows.num_sampled,
            features=needs,
        )
        pack_s = self._clock() - start_s
        output = self._run(shape, packed)
        run = StepRun(
            program=shape.name,
            num_tokens=rows.num_tokens,
            padded_tokens=shape.tokens,
            padded_sequences=shape.sequences,
            pack_s=pack_s,
            flops=cost.flops,
            read_bytes=cost.read_bytes,
            written_bytes=cost.written_bytes,
        )
        if isinstance(output, PoolOutput):
            return PendingVectors(output, rows, run=run)
        return PendingResult(
            output,
            rows,
            run=run,
            num_logprobs=_at(table.num_logprobs, rows) if Feature.LOGPROBS in needs else None,
            named=_at(table.named, rows) if Feature.LOGPROBS in needs else None,
            num_prompt_logprobs=_at(table.num_prompt_logprobs, rows) if rows.has_targets else None,
        )

    def sample_deferred(self, plan: DeferredSamplePlan) -> "PendingResult":
        """Start deferred sampling; see plan.Runner."""
        start_s = self._clock()
        rows, table = Rows(plan.rows), self._table
        needs = table.needs(rows)
        shape = self._table_of(plan.programs).choose_deferred(rows.num_rows)
        packed = pack_deferred(rows, plan.masks, needs, shape, table, vocab_size=self._vocab_size)
        pack_s = self._clock() - start_s
        return PendingResult(
            self._run_deferred(shape, packed),
            rows,
            run=StepRun(
                program=shape.name,
                num_tokens=rows.num_rows,
                padded_tokens=shape.rows,
                padded_sequences=shape.rows,
                pack_s=pack_s,
            ),
            num_logprobs=_at(table.num_logprobs, rows) if Feature.LOGPROBS in needs else None,
            named=_at(table.named, rows) if Feature.LOGPROBS in needs else None,
            num_prompt_logprobs=None,
        )

    def warm_up(self) -> None:
        """Run every compiled program once on the null slot, because first runs are slow.

        The rows are not all padding. Padding runs neither attention nor sampling, whose first run
        also takes longer (on a CPU the first prompt took twice as long).
        """
        self._take_over()
        for shape in self._shapes.shapes:
            rows = Rows(_null_rows(shape, self._null_tokens))
            packed = pack(rows, GREEDY, shape, self._table)
            jax.block_until_ready(self._run(shape, packed))
        if self._all_shapes.pools:
            return
        for deferred in self._shapes.deferred:
            row = RowPlan(slot=NULL_SLOT, start=0, num_tokens=1, token_ids=())
            packed = pack_deferred(
                Rows((row,)),
                (None,),
                GREEDY,
                deferred,
                self._table,
                vocab_size=self._vocab_size,
            )
            jax.block_until_ready(self._run_deferred(deferred, packed))
        nobody = SlotAssignment(
            slot=NULL_SLOT, params=SamplingParams(min_tokens=1), seed=0, prompt_ids=(0,)
        )
        self._assign(nobody)
        jax.block_until_ready(self._state)

    def _take_over(self) -> None:
        """Let plans use the shapes compiled since the last call."""
        self._num_programs = self._programs.num_made  # read first: more may be compiled meanwhile
        compiled = sum(1 << i for i, each in enumerate(self._order) if self._programs.has(each))
        self._shapes = self._table_of(compiled)
        self._limits = structs.replace(self._shapes.limits, programs=compiled)

    def _table_of(self, programs: int | None) -> ShapeTable:
        """Return the shapes that a plan may use; programs not compiled here are waited for."""
        if programs is None:
            return self._shapes
        table = self._tables.get(programs)
        if table is None:
            usable = {each for i, each in enumerate(self._order) if programs >> i & 1}
            table = self._tables[programs] = self._all_shapes.only(usable.__contains__)
        return table

    def _assign(self, assignment: SlotAssignment) -> None:
        params, extra = assignment.params, self._processors.row(assignment.params)
        self._table.assign(assignment, is_processed=extra is not None)
        if params.adjusts_logits or params.logprob_token_ids or extra is not None:
            if extra is None:
                extra = np.zeros(self._processors.row_size, np.float32)
            row = slot_row(
                assignment,
                vocab_size=self._vocab_size,
                deferred_hidden=self._no_hidden,
                extra=extra,
            )
            write = self._programs.get(Helper.ASSIGN)
            self._state = write(self._state, np.int32(assignment.slot), row)

    def _run(self, shape: StepShape, packed: np.ndarray) -> Output:
        output: Output
        output, self._cache, self._state = self._programs.get(shape)(
            self._leaves, self._cache, self._state, packed
        )
        return output

    def _run_deferred(self, shape: DeferredSampleShape, packed: np.ndarray) -> StepOutput:
        output: StepOutput
        output, self._state = self._programs.get(shape)(self._leaves, self._state, packed)
        return output


def _null_rows(shape: StepShape, num_tokens: int) -> tuple[RowPlan, ...]:
    """Return rows of the null slot, at most `num_tokens` long, on the null page."""
    lengths = [1] * shape.sequences
    if not shape.is_decode:
        lengths = [1, min(shape.tokens - 1, num_tokens)][-shape.sequences :]
    return tuple(
        RowPlan(slot=NULL_SLOT, start=0, num_tokens=length, token_ids=(0,) * length)
        for length in lengths
    )


class PendingResult:
    """Step in flight, whose results are already being copied to the host."""

    def __init__(
        self,
        output: StepOutput,
        rows: Rows,
        *,
        run: StepRun,
        num_logprobs: list[int | None] | None,
        named: list[tuple[int, ...]] | None,
        num_prompt_logprobs: list[int] | None,
    ) -> None:
        self.run = run
        self._output = output
        self._rows = rows
        self._num_logprobs = num_logprobs
        self._named = named
        self._num_prompt_logprobs = num_prompt_logprobs
        output.tokens.copy_to_host_async()
        if num_logprobs is not None or num_prompt_logprobs is not None:
            for leaf in jax.tree.leaves((output.logprobs, output.prompt_logprobs)):
                leaf.copy_to_host_async()

    def is_ready(self) -> bool:
        """Whether the device has finished; see plan.PendingStep."""
        tokens: Any = self._output.tokens  # jax.Array's type lacks is_ready
        is_ready: bool = tokens.is_ready()
        return is_ready

    def wait(self) -> StepResult:
        """Block until the step is done; see plan.PendingStep."""
        rows = self._rows
        tokens = np.asarray(self._output.tokens)[:, : rows.num_rows]
        token_ids: tuple[tuple[int, ...], ...]
        invalid_rows: frozenset[int] = frozenset()
        empty_rows: frozenset[int] = frozenset()
        status, counts = tokens[:2]
        if (tokens[:2] == _ONE_SAMPLED).all():
            token_ids = tuple(zip(tokens[2].tolist()))
        else:
            yielded = zip(tokens[2:].T.tolist(), counts.tolist(), strict=True)
            token_ids = tuple([tuple(ids[:count]) for ids, count in yielded])
            samples = rows.samples > 0
            invalid_rows = _where((status == SampleStatus.NOT_FINITE) & samples)
            empty_rows = _where((status == SampleStatus.NONE_ALLOWED) & samples)
        return StepResult(
            token_ids=token_ids,
            invalid_rows=invalid_rows,
            empty_rows=empty_rows,
            logprobs=self._read_logprobs(token_ids),
            prompt_logprobs=self._read_prompt_logprobs(),
        )

    def _read_logprobs(
        self, token_ids: tuple[tuple[int, ...], ...]
    ) -> dict[int, tuple[PositionLogprobs, ...]]:
        counts, named = self._num_logprobs, self._named
        if counts is None or named is None or not any(count is not None for count in counts):
            return {}
        report = _Report(self._output.logprobs)
        num_yields = self._output.tokens.shape[0] - 2
        return {
            i: tuple(
                report.at(i * num_yields + j, token, count, named[i])
                for j, token in enumerate(tokens)
            )
            for i, (tokens, count) in enumerate(zip(token_ids, counts, strict=True))
            if tokens and count is not None
        }

    def _read_prompt_logprobs(self) -> dict[int, tuple[PositionLogprobs, ...]]:
        counts, scores = self._num_prompt_logprobs, self._output.prompt_logprobs
        found: dict[int, tuple[PositionLogprobs, ...]] = {}
        if counts is None or scores is None:
            return found
        report = _Report(scores)
        first = 0
        for i, row in enumerate(self._rows.rows):
            if row.targets:
                found[i] = tuple(
                    report.at(first + j, token, counts[i]) for j, token in enumerate(row.targets)
                )
            first += row.num_tokens
        return found


class PendingVectors:
    """Pooling step in flight."""

    def __init__(self, output: PoolOutput, rows: Rows, *, run: StepRun) -> None:
        self.run = run
        self._vectors: Any = output.vectors  # jax.Array's type lacks is_ready
        self._rows = rows
        self._vectors.copy_to_host_async()

    def is_ready(self) -> bool:
        """Whether the device has finished; see plan.PendingStep."""
        is_ready: bool = self._vectors.is_ready()
        return is_ready

    def wait(self) -> StepResult:
        """Block until the step is done; see plan.PendingStep."""
        vectors = np.asarray(self._vectors)[: self._rows.num_rows]
        samples = self._rows.samples > 0
        is_finite = np.isfinite(vectors).all(axis=1)
        return StepResult(
            token_ids=((),) * self._rows.num_rows,
            invalid_rows=_where(samples & ~is_finite),
            vectors={i: vectors[i].tobytes() for i in np.flatnonzero(samples).tolist()},
        )


def _where(rows: np.ndarray) -> frozenset[int]:
    """Return the indices of the true rows."""
    return frozenset(np.flatnonzero(rows).tolist())


def _at[T](per_slot: list[T], rows: Rows) -> list[T]:
    return [per_slot[slot] for slot in rows.slots.tolist()]


class _Report:
    """Log-probabilities in host memory."""

    def __init__(self, scores: Logprobs) -> None:
        self._chosen = np.asarray(scores.chosen)
        self._rank = np.asarray(scores.rank)
        self._top_ids = np.asarray(scores.top_ids)
        self._top = np.asarray(scores.top)
        self._named = np.asarray(scores.named)

    def at(self, row: int, token: int, count: int, named: tuple[int, ...] = ()) -> PositionLogprobs:
        """Return the chosen token of a row, its `count` most likely tokens, and the named ones."""
        ids, values = self._top_ids[row, :count].tolist(), self._top[row, :count].tolist()
        return PositionLogprobs(
            chosen=TokenLogprob(token, float(self._chosen[row]), int(self._rank[row])),
            top=tuple(
                TokenLogprob(token_id, value, rank)
                for rank, (token_id, value) in enumerate(zip(ids, values, strict=True), start=1)
            )
            + tuple(
                TokenLogprob(token_id, float(self._named[row, i]), None)
                for i, token_id in enumerate(named)
            ),
        )
