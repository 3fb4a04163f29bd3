"""Continuous batching: which sequence computes which tokens in the next step.

The scheduler owns sequences, slots, pages and the prefix cache, and works on plain integers.
`schedule` plans a step and `commit` accounts for it. Further steps may be planned in between, on
tokens that are still on the device.

A step computes one token of every decoding sequence, and chunks of prompts within limits of time
and tokens (composer.py, prefills.py). Waiting sequences start as slots and pages allow
(admission.py), in order of precedence: by priority if the policy says so, then by turn. The turn of
a request is the number of answers requested before it. Each further choice or prompt of one request
takes the next turn, as if it had arrived with a later request.

If a decode finds no free page, the running sequence of lowest precedence is preempted, and later
starts again from its known tokens. The sequence of highest precedence is never preempted, and every
admitted sequence fits the pool alone, so every sequence finishes.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from msgspec import structs

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.plan import DeferredSamplePlan, RowPlan, StepLimits, StepPlan, StepResult
from jaxserve.api.request import LOWEST_PRIORITY, FinishReason, Request
from jaxserve.engine.admission import Admission
from jaxserve.engine.composer import StepComposer
from jaxserve.engine.drafts import Drafter, Drafts
from jaxserve.engine.memory import KVMemory
from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.running import RunningSet
from jaxserve.engine.sequence import Sequence, SequenceGroup, Update, new_group
from jaxserve.engine.waiting import WaitingQueue
from jaxserve.errors import InvalidRequestError
from jaxserve.observability.stats import StepStats, Totals

NOT_FINITE = "the model computed logits that are not finite numbers"


class Scheduler:
    """Owner of all sequences and of the memory they use.

    eos_ids: tokens that end a sequence unless its request ignores them. seed: seed of the generator
    that seeds requests without a seed. drafter: proposes draft tokens. clock: returns seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheConfig,
        *,
        eos_ids: Iterable[int] = (),
        seed: int = 0,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._cache = cache
        self._eos_ids = frozenset(eos_ids)
        # Not for secrets; equal engine seeds must give equal tokens.
        self._random = random.Random(seed)  # noqa: S311
        self._clock = clock
        self._max_tokens = config.max_num_batched_tokens
        self._max_sequences = config.max_num_seqs
        self._memory = KVMemory(cache)
        self._drafts = drafter and Drafts(drafter, self._memory)
        self._groups: dict[str, SequenceGroup] = {}
        self._waiting = WaitingQueue(config.max_queued_requests)
        self._running = RunningSet(config.max_num_seqs)
        # Sequence of each row in flight; None once the sequence has left its slot.
        self._in_flight: deque[tuple[StepPlan | DeferredSamplePlan, list[Sequence | None]]] = (
            deque()
        )
        self._num_requests = 0
        # The turn of the next request.
        self._turn = 0
        self._totals = Totals()
        self._admission = Admission(
            memory=self._memory,
            waiting=self._waiting,
            running=self._running,
            totals=self._totals,
            clock=clock,
        )
        self._composer = StepComposer(
            config,
            memory=self._memory,
            running=self._running,
            drafts=self._drafts,
            preempt=self._preempt,
            clock=clock,
        )

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._groups)

    def add(self, request: Request) -> SequenceGroup:
        """Queue a request that has passed `Request.check`, and return its choices.

        Raises OverloadedError when the queue is full, and InvalidRequestError when the request
        could not finish even with the whole page pool to itself: then no preemption would help.
        """
        if request.id in self._groups:
            raise InvalidRequestError(
                f"request_id {request.id!r} is already in use", param="request_id"
            )
        eos_ids = frozenset[int]() if request.params.ignore_eos else self._eos_ids
        request.check_allowed(eos_ids)
        max_length = self._max_length(request)
        self._waiting.check_room(request)
        self._num_requests += 1
        self._turn += request.turn == 0
        has_priority = self.config.policy == "priority" or request.priority == LOWEST_PRIORITY
        priority = request.priority if has_priority else 0
        group = new_group(
            request,
            number=self._num_requests,
            order=(priority, self._turn + request.turn),
            next_seed=lambda: self._random.getrandbits(64),
            eos_ids=eos_ids,
            max_length=max_length,
            enable_prefix_caching=self._cache.enable_prefix_caching,
        )
        self._groups[request.id] = group
        self._waiting.add(group)
        return group

    def abort(
        self,
        request_id: str,
        *,
        reason: FinishReason = FinishReason.ABORT,
        error: str | None = None,
    ) -> list[Sequence]:
        """End all choices of a request, and return those that had not ended yet.

        Their rows in flight are computed and discarded. An unknown or finished request is not an
        error: an abort can race with the end of its request.
        """
        group = self._groups.get(request_id)
        if group is None:
            return []
        ended = [sequence for sequence in group.sequences if not sequence.is_finished]
        for sequence in ended:
            self.finish(sequence, reason, error=error)
        return ended

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_reason: int | None = None,
        error: str | None = None,
        error_param: str | None = None,
    ) -> None:
        """End a sequence and release its slot and pages. error_param: parameter at fault."""
        assert not sequence.is_finished, sequence
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._release(sequence)
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        sequence.error = error
        sequence.error_param = error_param
        sequence.finished_s = self._clock()
        group = sequence.group
        group.num_unfinished -= 1
        if group.num_unfinished == 0:
            self._waiting.close(group)
            del self._groups[group.request.id]

    def finish_if_done(self, sequence: Sequence, token_id: int) -> None:
        """End a sequence if its newest token is a stop token or the last allowed one."""
        if token_id in sequence.stop_ids and sequence.may_stop:
            stop_reason = None if token_id in sequence.eos_ids else token_id
            self.finish(sequence, FinishReason.STOP, stop_reason=stop_reason)
        elif sequence.num_known == sequence.max_length:
            self.finish(sequence, FinishReason.LENGTH)

    def schedule(
        self, limits: StepLimits | None = None, *, defers_all: bool = False
    ) -> StepPlan | None:
        """Plan the next step; None when nothing can be computed before a step is committed.

        limits: the runner's current limits. defers_all: see PlanBuilder.
        """
        if limits is not None:
            self._max_tokens = min(self.config.max_num_batched_tokens, limits.num_tokens)
            self._max_sequences = min(self.config.max_num_seqs, limits.num_sequences)
        builder = PlanBuilder(
            defers_all=defers_all, programs=None if limits is None else limits.programs
        )
        num_preemptions = self._totals.num_preemptions
        context = self._composer.add_decodes(builder, max_tokens=self._max_tokens)
        if self._totals.num_preemptions == num_preemptions:
            # Otherwise a preempted sequence would take back the pages that it just released.
            self._admission.admit(max_sequences=self._max_sequences, max_tokens=self._max_tokens)
        self._composer.add_prefills(builder, max_tokens=self._max_tokens, decode_context=context)
        plan = builder.plan()
        if plan is not None:
            self._in_flight.append((plan, [*builder.sequences]))
            self._memory.fill(builder.num_tokens)
            self._totals.num_kv_slots += self._memory.num_slots
            self._totals.num_empty_kv_slots += self._memory.num_empty
        return plan

    @property
    def deferred(self) -> list[Sequence]:
        """Sequences whose sampling is deferred."""
        return [sequence for sequence in self._running.decoding if sequence.is_deferred]

    def plan_deferred(
        self,
        sequences: list[Sequence],
        masks: Iterable[np.ndarray | None],
        *,
        programs: int | None = None,
    ) -> DeferredSamplePlan:
        """Plan the deferred samples of sequences; masks, programs: as in DeferredSamplePlan."""
        rows = []
        for sequence in sequences:
            assert sequence.is_deferred, sequence
            assert sequence.slot is not None, sequence
            start = sequence.length - 1
            rows.append(RowPlan(slot=sequence.slot, start=start, num_tokens=1, token_ids=()))
            sequence.length += 1
        plan = DeferredSamplePlan(rows=tuple(rows), masks=tuple(masks), programs=programs)
        self._in_flight.append((plan, [*sequences]))
        return plan

    def force(self, sequence: Sequence, token_ids: Iterable[int]) -> list[int]:
        """Append tokens that a grammar forces, up to one that ends the sequence; return them.

        The caller ends the sequence. None of its samples may be in flight.
        """
        assert sequence.length == sequence.num_known, sequence
        taken: list[int] = []
        for token_id in token_ids:
            if sequence.num_known == sequence.max_length:
                break
            taken.append(token_id)
            sequence.output_ids.append(token_id)
            if token_id in sequence.stop_ids and sequence.may_stop:
                break
        self._totals.num_generated_tokens += len(taken)
        if sequence.first_token_s is None:
            sequence.first_token_s = self._clock()
            self._count_prompt(sequence)
        if sequence.is_decoding:
            self._running.begin_prefilling(sequence)
            sequence.is_decoding = False
        sequence.length = sequence.num_known
        if sequence.slot is not None and not self._memory.promise(sequence):
            self._preempt(sequence)
        return taken

    def commit(self, plan: StepPlan | DeferredSamplePlan, result: StepResult) -> list[Update]:
        """Account for the oldest step or deferred sample in flight; return the updates by row.

        Errors come first. Sequences that reach a stop token or their length limit end and release
        their slots and pages. Those can be reused at once although a step in flight still writes to
        them: the device runs steps in dispatch order, so it ends before the new owner's first step.
        """
        expected, sequences = self._in_flight.popleft()
        assert plan is expected, "steps are committed in the order they were scheduled"
        page_size = self._cache.page_size
        updates = self._finish_failed(result, sequences)
        num_generated = 0
        logprobs, drafts = result.logprobs, self._drafts
        # The hot loop of the host: one iteration per sequence and step.
        for index, (row, sequence, token_ids) in enumerate(
            zip(plan.rows, sequences, result.token_ids, strict=True)
        ):
            if sequence is None:
                continue  # it left its slot after this row was planned
            num_computed = row.start + row.num_tokens
            if drafts is not None and row.samples > 1:
                token_ids = sequence.until_end(token_ids)
                num_computed -= row.samples - len(token_ids)
                drafts.roll_back(sequence, num_computed)
            sequence.num_computed = num_computed
            output_ids = sequence.output_ids
            output_ids += token_ids
            if row.targets:
                sequence.prompt_logprobs.extend(result.prompt_logprobs[index])
                if len(sequence.prompt_logprobs) == sequence.num_prompt - 1:
                    sequence.targets_stop = 0
            if num_computed >= (sequence.num_registered + 1) * page_size:
                self._waiting.release(self._memory.commit(sequence))
            if token_ids:
                num_generated += len(token_ids)
                if sequence.first_token_s is None:
                    sequence.first_token_s = self._clock()
                    self._count_prompt(sequence)
                token_id = token_ids[-1]
                if (
                    token_id in sequence.stop_ids
                    or sequence.num_prompt + len(output_ids) == sequence.max_length
                ):
                    self.finish_if_done(sequence, token_id)
                updates.append((sequence, token_ids, logprobs.get(index) if logprobs else None))
            elif row.samples:
                sequence.vector = result.vectors[index]
                self._count_prompt(sequence)
                self.finish(sequence, FinishReason.STOP)
                updates.append((sequence, (), None))
        self._totals.num_generated_tokens += num_generated
        return updates

    def _count_prompt(self, sequence: Sequence) -> None:
        """Count the tokens of a prompt that is fully computed."""
        self._totals.num_prompt_tokens += sequence.num_prompt
        self._totals.num_reused_tokens += sequence.num_cached_tokens or 0

    def reset_prefix_cache(self) -> None:
        """Clear the prefix cache; running sequences keep their pages."""
        self._memory.reset_prefix_cache()

    def stats(self) -> StepStats:
        """Return current gauges, and counts since the scheduler was created."""
        fullest = self._memory.fullest
        return StepStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_deferred=self._waiting.num_prefix_pending,
            num_pages=fullest.num_pages,
            num_pages_used=fullest.num_used,
            num_released_pages=self._memory.num_released,
            **structs.asdict(self._totals),
        )

    def check_integrity(self) -> None:
        """Assert that every sequence, slot and page is in one place, and that counts agree."""
        running = self._running.prefilling + self._running.decoding
        self._memory.check_integrity(running)
        self._waiting.check_integrity(
            list(self._groups.values()), is_expected=self._memory.is_expected
        )
        self._running.check_integrity()
        unfinished = 0
        for group in self._groups.values():
            assert group.num_unfinished == sum(not seq.is_finished for seq in group.sequences) > 0
            unfinished += group.num_unfinished
            for sequence in group.sequences:
                sequence.check_integrity()
        assert unfinished == len(running) + len(self._waiting), "a sequence is nowhere"

    def _max_length(self, request: Request) -> int:
        """Return the tokens of prompt and output at which a sequence of the request must end."""
        # The vector of a prompt counts as a token after it, which takes no position.
        longest = self.config.max_model_len + request.pools
        limit = min(longest, self._memory.max_length(request))
        max_tokens = request.params.max_tokens
        return limit if max_tokens is None else min(limit, len(request.prompt_ids) + max_tokens)

    def _preempt(self, sequence: Sequence) -> None:
        """Release the slot and pages of a running sequence, and put it back into the queue."""
        self._release(sequence)
        sequence.num_preemptions += 1
        self._totals.num_preemptions += 1
        self._waiting.push(sequence)

    def _finish_failed(self, result: StepResult, sequences: list[Sequence | None]) -> list[Update]:
        """End the sequences whose rows have no valid token, and remove them from `sequences`."""
        updates: list[Update] = []
        for index in (*result.invalid_rows, *result.empty_rows):
            sequence = sequences[index]
            if sequence is None:
                continue
            if index in result.invalid_rows:
                # Its pages may be invalid too: remove them from the prefix cache.
                self._memory.invalidate(sequence)
                self.finish(sequence, FinishReason.ERROR, error=NOT_FINITE)
            else:
                constraints = sequence.request.params.constraints
                self.finish(
                    sequence,
                    FinishReason.ERROR,
                    error=f"{' and '.join(constraints) or 'the logits processors'} allow no token"
                    f" after {len(sequence.output_ids)} tokens of the answer",
                    error_param=next(iter(constraints), None),
                )
            sequences[index] = None
            updates.append((sequence, (), None))
        return updates

    def _release(self, sequence: Sequence) -> None:
        """Release the slot and pages of a sequence, and discard its rows in flight."""
        for _, sequences in self._in_flight:
            if sequence in sequences:
                sequences[sequences.index(sequence)] = None
        self._running.remove(sequence)
        self._waiting.release(self._memory.leave(sequence))
