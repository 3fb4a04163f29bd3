"""The runner: the one place that runs programs and moves data between host and device."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxserve.execution.batch import SlotTable, pack, packed_sizes
from jaxserve.execution.cost import StepCosts
from jaxserve.execution.programs import Helper, Program, ProgramSet
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import ShapeTable, StepShape
from jaxserve.execution.state import SlotState, slot_memory
from jaxserve.execution.step import KVCache, StepContext, StepOutput
from jaxserve.models import Params
from jaxserve.plan import RUBBISH_SLOT, RowPlan, SlotAssignment, StepPlan, StepResult, StepRun
from jaxserve.request import PositionLogprobs, SamplingParams, TokenLogprob
from pallas_kernels.paged_attention import CacheSpec

type Progress = Callable[[Iterable[StepShape]], Iterable[StepShape]]


class ModelRunner:
    """Owns everything on the device: parameters, KV cache and slot state. Implements plan.Runner.

    Cache and state exist once: every step takes them by donation and gives them back. Of its
    programs it is given some, `executables`; it compiles the others when they are first needed.
    clock: seconds, the engine's.
    """

    def __init__(
        self,
        params: Params,
        *,
        context: StepContext,
        cache_spec: CacheSpec,
        shapes: ShapeTable,
        num_slots: int,
        pages_per_sequence: int,
        executables: Mapping[Program, jax.stages.Compiled] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._params = params
        self._clock = clock
        self._shapes = shapes
        self._vocab_size = context.model.vocab_size
        self._table = SlotTable(num_slots=num_slots, pages=pages_per_sequence)
        self._programs = ProgramSet(context, cache_spec=cache_spec, num_slots=num_slots)
        self._compiled = dict(executables or {})
        self._costs = StepCosts(context.model, params=params, attention=context.attention)
        self._cache: KVCache
        self._state: SlotState[jax.Array]
        self._cache, self._state = self._program(Helper.ALLOCATE)()

    def dispatch(self, plan: StepPlan) -> "PendingResult":
        """Start a step; see plan.Runner."""
        start_s = self._clock()
        for assignment in plan.assignments:
            self._assign(assignment)
        rows = plan.rows
        for row in rows:
            if row.new_pages:
                self._table.extend(row)
        variant = self._table.variant_for(rows)
        shape = self._shapes.choose([row.num_tokens for row in rows], variant)
        packed = pack(rows, variant, shape, self._table)
        cost = self._costs.count(
            packed.starts,
            packed.lengths,
            num_tokens=packed.num_tokens,
            num_sampled=packed.num_sampled,
            variant=variant,
        )
        pack_s = self._clock() - start_s
        output = self._run(shape, packed.ints, packed.floats)
        table = self._table
        return PendingResult(
            output,
            rows,
            run=StepRun(
                program=shape.name,
                num_tokens=packed.num_tokens,
                padded_tokens=shape.tokens,
                padded_sequences=shape.sequences,
                pack_s=pack_s,
                flops=cost.flops,
                read_bytes=cost.read_bytes,
                written_bytes=cost.written_bytes,
            ),
            num_logprobs=[table.num_logprobs[row.slot] for row in rows],
            num_prompt_logprobs=[table.num_prompt_logprobs[row.slot] for row in rows],
        )

    def warm_up(self, progress: Progress = iter) -> int:
        """Run every program on padding, compiled first if need be; return how many there are."""
        shapes = self._shapes.all()
        for shape in progress(shapes):
            ints, floats = packed_sizes(shape)
            output = self._run(shape, np.zeros(ints, np.int32), np.zeros(floats, np.float32))
            jax.block_until_ready(output)
        nobody = SlotAssignment(
            slot=RUBBISH_SLOT, params=SamplingParams(min_tokens=1), seed=0, prompt_ids=(0,)
        )
        self._assign(nobody)
        jax.block_until_ready(self._state)
        return len(self._compiled)

    def _assign(self, assignment: SlotAssignment) -> None:
        self._table.assign(assignment)
        if assignment.params.adjusts_logits:
            memory = slot_memory(assignment, vocab_size=self._vocab_size)
            write = self._program(Helper.REMEMBER)
            self._state = write(self._state, np.int32(assignment.slot), memory)

    def _run(self, shape: StepShape, ints: np.ndarray, floats: np.ndarray) -> StepOutput:
        output: StepOutput
        output, self._cache, self._state = self._program(shape)(
            self._params, self._cache, self._state, ints, floats
        )
        return output

    def _program(self, program: Program) -> jax.stages.Compiled:
        compiled = self._compiled.get(program)
        if compiled is None:
            compiled = self._compiled[program] = self._programs.compile(self._params, program)
        return compiled


class PendingResult:
    """A step under way; its results are on their way to the host already."""

    def __init__(
        self,
        output: StepOutput,
        rows: tuple[RowPlan, ...],
        *,
        run: StepRun,
        num_logprobs: list[int | None],
        num_prompt_logprobs: list[int],
    ) -> None:
        self.run = run
        self._output = output
        self._rows = rows
        self._num_logprobs = num_logprobs
        self._num_prompt_logprobs = num_prompt_logprobs
        self._has_logprobs = any(count is not None for count in num_logprobs)
        wanted = (
            output.tokens,
            output.logprobs if self._has_logprobs else None,
            output.prompt_logprobs,
        )
        for leaf in jax.tree.leaves(wanted):
            leaf.copy_to_host_async()

    def is_ready(self) -> bool:
        """Whether the device has finished; see plan.PendingStep."""
        tokens: Any = self._output.tokens  # jax.Array's type leaves this method out
        is_ready: bool = tokens.is_ready()
        return is_ready

    def wait(self) -> StepResult:
        """Block until the step is done; see plan.PendingStep."""
        output, rows = self._output, self._rows
        packed = np.asarray(output.tokens)
        tokens: list[int] = packed[0, : len(rows)].tolist()
        token_ids = tuple(
            token if row.samples else None for token, row in zip(tokens, rows, strict=True)
        )
        is_invalid = packed[1, : len(rows)] == 0
        logprobs: dict[int, PositionLogprobs] = {}
        if self._has_logprobs:
            report = _Report(output.logprobs)
            for i, (token, count) in enumerate(zip(token_ids, self._num_logprobs, strict=True)):
                if token is not None and count is not None:
                    logprobs[i] = report.at(i, token, count)
        return StepResult(
            token_ids=token_ids,
            invalid_rows=frozenset(
                int(i) for i in is_invalid.nonzero()[0] if token_ids[i] is not None
            ),
            logprobs=logprobs,
            prompt_logprobs=self._read_prompt_logprobs(output.prompt_logprobs),
        )

    def _read_prompt_logprobs(
        self, scores: Logprobs | None
    ) -> dict[int, tuple[PositionLogprobs, ...]]:
        found: dict[int, tuple[PositionLogprobs, ...]] = {}
        if scores is None:
            return found
        report = _Report(scores)
        first = 0
        for i, row in enumerate(self._rows):
            if row.targets:
                count = self._num_prompt_logprobs[i]
                found[i] = tuple(
                    report.at(first + j, token, count) for j, token in enumerate(row.targets)
                )
            first += row.num_tokens
        return found


class _Report:
    """Log-probabilities in host memory, read a row at a time."""

    def __init__(self, scores: Logprobs) -> None:
        self._chosen = np.asarray(scores.chosen)
        self._rank = np.asarray(scores.rank)
        self._top_ids = np.asarray(scores.top_ids)
        self._top = np.asarray(scores.top)

    def at(self, row: int, token: int, count: int) -> PositionLogprobs:
        """Return the chosen token of a row and its `count` most likely ones."""
        ids, values = self._top_ids[row, :count].tolist(), self._top[row, :count].tolist()
        return PositionLogprobs(
            chosen=TokenLogprob(token, float(self._chosen[row]), int(self._rank[row])),
            top=tuple(
                TokenLogprob(token_id, value, rank)
                for rank, (token_id, value) in enumerate(zip(ids, values, strict=True), start=1)
            ),
        )
