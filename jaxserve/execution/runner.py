"""The runner: the one place that jits, donates, and moves data between host and device."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxserve.execution.batch import SlotTable, pack, packed_sizes
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import ShapeTable, StepShape
from jaxserve.execution.state import SlotState, abstract_state, remember, slot_memory
from jaxserve.execution.step import KVCache, StepContext, StepOutput, step
from jaxserve.models import Params
from jaxserve.plan import RUBBISH_SLOT, RowPlan, SlotAssignment, StepPlan, StepResult
from jaxserve.request import PositionLogprobs, SamplingParams, TokenLogprob
from jaxserve.sharding import named_sharding
from pallas_kernels.paged_attention import CacheSpec

type Progress = Callable[[Iterable[StepShape]], Iterable[StepShape]]


class StepProgram:
    """The step under jit, and what it keeps on the device, described before it exists.

    cache and state: trees of jax.ShapeDtypeStruct, each with its sharding. run: `step`, which
    takes both by donation and returns them where they were. remember: `state.remember`, likewise.
    """

    def __init__(self, context: StepContext, *, cache_spec: CacheSpec, num_slots: int) -> None:
        mesh = context.mesh
        replicated = NamedSharding(mesh, PartitionSpec())
        pages = named_sharding(cache_spec.axes, cache_spec.shape, mesh)
        self.cache = tuple(
            jax.ShapeDtypeStruct(cache_spec.shape, cache_spec.dtype, sharding=pages)
            for _ in range(context.model.num_layers)
        )
        self.state: SlotState[jax.ShapeDtypeStruct] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
            abstract_state(num_slots=num_slots, vocab_size=context.model.vocab_size),
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (self.cache, self.state))
        self.run = jax.jit(
            partial(step, context=context),
            static_argnames=("shape",),
            donate_argnames=("cache", "state"),
            out_shardings=(replicated, *shardings),
        )
        self.remember = jax.jit(remember, donate_argnums=0, out_shardings=shardings[1])

    def compile(self, params: Params, shape: StepShape) -> jax.stages.Compiled:
        """Compile a shape without running it; `params` may be abstract."""
        ints, floats = packed_sizes(shape)
        return self.run.lower(
            params,
            self.cache,
            self.state,
            jax.ShapeDtypeStruct((ints,), jnp.int32),
            jax.ShapeDtypeStruct((floats,), jnp.float32),
            shape=shape,
        ).compile()


class ModelRunner:
    """Owns everything on the device: parameters, KV cache and slot state. Implements plan.Runner.

    Cache and state exist once: every step takes them by donation and gives them back.
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
    ) -> None:
        self._params = params
        self._shapes = shapes
        self._vocab_size = context.model.vocab_size
        self._table = SlotTable(num_slots=num_slots, pages=pages_per_sequence)
        self._program = StepProgram(context, cache_spec=cache_spec, num_slots=num_slots)
        self._cache: KVCache = _zeros(self._program.cache)
        self._state: SlotState[jax.Array] = _zeros(self._program.state)

    def dispatch(self, plan: StepPlan) -> "PendingResult":
        """Start a step; see plan.Runner."""
        for assignment in plan.assignments:
            self._assign(assignment)
        rows = plan.rows
        for row in rows:
            if row.new_pages:
                self._table.extend(row)
        variant = self._table.variant_for(rows)
        shape = self._shapes.choose([row.num_tokens for row in rows], variant)
        output = self._run(shape, *pack(rows, variant, shape, self._table))
        table = self._table
        return PendingResult(
            output,
            rows,
            num_logprobs=[table.num_logprobs[row.slot] for row in rows],
            num_prompt_logprobs=[table.num_prompt_logprobs[row.slot] for row in rows],
        )

    def warm_up(self, progress: Progress = iter) -> int:
        """Compile every program by running it on padding, and return how many there are."""
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
        return len(shapes) + 1

    def _assign(self, assignment: SlotAssignment) -> None:
        self._table.assign(assignment)
        if assignment.params.adjusts_logits:
            memory = slot_memory(assignment, vocab_size=self._vocab_size)
            self._state = self._program.remember(self._state, np.int32(assignment.slot), memory)

    def _run(self, shape: StepShape, ints: np.ndarray, floats: np.ndarray) -> StepOutput:
        output: StepOutput
        output, self._cache, self._state = self._program.run(
            self._params, self._cache, self._state, ints, floats, shape=shape
        )
        return output


class PendingResult:
    """A step under way; its results are on their way to the host already."""

    def __init__(
        self,
        output: StepOutput,
        rows: tuple[RowPlan, ...],
        *,
        num_logprobs: list[int | None],
        num_prompt_logprobs: list[int],
    ) -> None:
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


def _zeros(abstract: Any) -> Any:
    """Make a tree of arrays of zeros where they will live."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
        out_shardings=shardings,
    )
    return make()
