"""Continuous batching: which sequence computes which tokens in the next step.

The scheduler owns sequences, slots, pages and the prefix cache, and decides everything in plain
integers. A step is planned by `schedule` and accounted for by `commit`; in between further steps
may be planned, on tokens that are still on the device.

A step computes one token of every sequence that is decoding, and chunks of prompts as far as time
and tokens allow (prefills.py). Waiting sequences run as slots and pages allow, in order of
precedence: by priority if the policy says so, then by turn. The turn of a request is the number of
answers that were asked for before it; each further choice or prompt of the same answer takes the
next turn, as if it had arrived with a later request. Two things let others pass for a
while: somebody ahead computes the prefix just now; or room is made for a sequence by forgetting
what one close behind it could start from.

A decode that finds no page takes those of the running sequence of lowest precedence, which later
starts again from its known tokens (preemption by recompute). The sequence of highest precedence is
never preempted, and whatever is admitted fits the pool alone: so every sequence finishes.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.plan import DrawPlan, RowPlan, StepLimits, StepPlan, StepResult
from jaxserve.api.request import LOWEST_PRIORITY, FinishReason, Request
from jaxserve.engine.drafts import Drafter, Drafts
from jaxserve.engine.memory import KVMemory, PrefixHit
from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.prefills import are_jumps_worth, divide, prefill_budget, whole
from jaxserve.engine.running import RunningSet
from jaxserve.engine.sequence import Sequence, SequenceGroup, Update, new_group
from jaxserve.engine.waiting import WaitingQueue
from jaxserve.errors import InvalidRequestError
from jaxserve.observability.stats import StepStats, Totals

NOT_FINITE = "the model computed logits that are not finite numbers"

# So many sequences may be asked, and may run, before the first in the queue.
MAX_PASSED = 64


class Scheduler:
    """Owner of all sequences and of the memory they use.

    eos_ids: tokens that end a sequence unless its request ignores them. seed: start of the random
    numbers from which requests without a seed get theirs. drafter: proposes tokens for rows that
    yield several. clock: seconds, as `time.monotonic`.
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
        # No secrets are drawn from it, and equal engine seeds must give equal streams.
        self._random = random.Random(seed)  # noqa: S311
        self._clock = clock
        # Of a step, as the runner stands: they only grow.
        self._max_tokens = config.max_num_batched_tokens
        self._max_sequences = config.max_num_seqs
        self._memory = KVMemory(cache)
        self._drafts = drafter and Drafts(drafter, self._memory)
        self._groups: dict[str, SequenceGroup] = {}
        self._waiting = WaitingQueue(config.max_queued_requests)
        self._running = RunningSet(config.max_num_seqs)
        # Whose the rows of each step are, None for a sequence that has left its slot since.
        self._in_flight: deque[tuple[StepPlan | DrawPlan, list[Sequence | None]]] = deque()
        self._num_requests = 0
        # Answers asked for: the turn of the next one.
        self._turn = 0
        self._totals = Totals()

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
            draw_seed=lambda: self._random.getrandbits(64),
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

        Their rows in steps under way are computed and ignored. An unknown id, or that of a
        request which has finished, is no error: aborts race with the end of what they abort.
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
        """End a sequence now, wherever it is, and give back what it holds.

        error_param: the parameter of its request that is to blame for the error, if one is.
        """
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
            self._waiting.forget(group)
            del self._groups[group.request.id]

    def schedule(self, limits: StepLimits | None = None, *, holds: bool = False) -> StepPlan | None:
        """Plan the next step; None when nothing can be computed before a step is committed.

        limits: the runner's as they are now, beside those of the configuration. holds: whether all
        its tokens are to be drawn later, and not only those that follow a grammar.
        """
        if limits is not None:
            self._max_tokens = min(self.config.max_num_batched_tokens, limits.num_tokens)
            self._max_sequences = min(self.config.max_num_seqs, limits.num_sequences)
        builder = PlanBuilder(holds=holds, programs=None if limits is None else limits.programs)
        num_preemptions = self._totals.num_preemptions
        context = self._schedule_decodes(builder)
        if self._totals.num_preemptions == num_preemptions:
            # Otherwise what was just preempted would take back the pages it was made to leave.
            self._admit()
        if self._running.prefilling:
            self._schedule_prefills(builder, context)
        plan = builder.plan()
        if plan is not None:
            self._in_flight.append((plan, [*builder.sequences]))
            self._memory.fill(plan.num_tokens)
            self._totals.num_kv_slots += self._memory.num_slots
            self._totals.num_empty_kv_slots += self._memory.num_empty
        return plan

    @property
    def held(self) -> list[Sequence]:
        """The sequences whose next tokens wait to be drawn."""
        return [sequence for sequence in self._running.decoding if sequence.is_held]

    def draw(
        self,
        sequences: list[Sequence],
        masks: Iterable[np.ndarray | None],
        *,
        programs: int | None = None,
    ) -> DrawPlan:
        """Plan to draw the tokens of sequences that are held; masks, programs: as in DrawPlan."""
        rows = []
        for sequence in sequences:
            assert sequence.is_held, sequence
            assert sequence.slot is not None, sequence
            start = sequence.length - 1
            rows.append(RowPlan(slot=sequence.slot, start=start, num_tokens=1, token_ids=()))
            sequence.length += 1
        plan = DrawPlan(rows=tuple(rows), masks=tuple(masks), programs=programs)
        self._in_flight.append((plan, [*sequences]))
        return plan

    def force(self, sequence: Sequence, token_ids: Iterable[int]) -> list[int]:
        """Append tokens that a grammar forces, and return those it took, up to one that ends it.

        The caller ends it. Nothing of it may be drawn meanwhile.
        """
        assert sequence.length == sequence.num_known, sequence
        taken: list[int] = []
        for token_id in token_ids:
            if sequence.num_known == sequence.max_length:
                break
            taken.append(token_id)
            sequence.output_ids.append(token_id)
            if token_id in sequence.stop_ids and self._may_stop(sequence):
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

    def commit(self, plan: StepPlan | DrawPlan, result: StepResult) -> list[Update]:
        """Account for the oldest step or draw in flight; return what changed, by row.

        Errors come first.

        Sequences that reach a stop token or their length have ended (and hold nothing) when this
        returns. Their pages and slots may be given to others at once, though a step under way
        still writes to them: the device runs steps in the order of dispatch, so that step is over
        before the new owner's first one.
        """
        expected, sequences = self._in_flight.popleft()
        assert plan is expected, "steps are committed in the order they were scheduled"
        page_size = self._cache.page_size
        updates: list[Update] = []
        for index in result.invalid_rows:
            sequence = sequences[index]
            if sequence is not None:
                # Whatever went wrong is in its pages too: nobody else shall start from them.
                self._memory.distrust(sequence)
                self.finish(sequence, FinishReason.ERROR, error=NOT_FINITE)
                sequences[index] = None
                updates.append((sequence, (), None))
        for index in result.empty_rows:
            sequence = sequences[index]
            if sequence is not None:
                self._finish_empty(sequence)
                sequences[index] = None
                updates.append((sequence, (), None))
        num_generated = 0
        # The hot loop of the host: once per sequence and step.
        for index, (row, sequence, token_ids) in enumerate(
            zip(plan.rows, sequences, result.token_ids, strict=True)
        ):
            if sequence is None:
                continue  # it left its slot after this row was planned
            num_computed = row.start + row.num_tokens
            if row.samples > 1:
                assert self._drafts is not None, "nobody drafts"
                token_ids = sequence.until_end(token_ids)
                num_computed -= row.samples - len(token_ids)
                self._drafts.settle(sequence, num_computed)
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
                updates.append((sequence, token_ids, result.logprobs.get(index)))
            elif row.samples:
                sequence.vector = result.vectors[index]
                self._count_prompt(sequence)
                self.finish(sequence, FinishReason.STOP)
                updates.append((sequence, (), None))
        self._totals.num_generated_tokens += num_generated
        return updates

    def _count_prompt(self, sequence: Sequence) -> None:
        """Count the tokens of a prompt of which everything is computed."""
        self._totals.num_prompt_tokens += sequence.num_prompt
        self._totals.num_reused_tokens += sequence.num_cached_tokens or 0

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; sequences that run keep their pages."""
        self._memory.forget_prefixes()

    def stats(self) -> StepStats:
        """Gauges as they are now; counts since the scheduler was made."""
        totals = self._totals
        return StepStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_deferred=self._waiting.num_held,
            num_pages=self._memory.num_pages,
            num_pages_used=self._memory.num_used,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_reused_tokens=totals.num_reused_tokens,
            num_generated_tokens=totals.num_generated_tokens,
            prefix_queries=totals.prefix_queries,
            prefix_hits=totals.prefix_hits,
            num_preemptions=totals.num_preemptions,
            num_kv_slots=totals.num_kv_slots,
            num_empty_kv_slots=totals.num_empty_kv_slots,
            num_released_pages=self._memory.num_released,
        )

    def check_integrity(self) -> None:
        """Assert that every sequence, slot and page is in one place, and every count right."""
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
        """Tokens of prompt and output together at which a sequence of the request must end."""
        # The vector of a prompt counts as the token after it, which has no place of its own.
        longest = self.config.max_model_len + request.pools
        limit = min(longest, self._memory.max_length(request))
        max_tokens = request.params.max_tokens
        return limit if max_tokens is None else min(limit, len(request.prompt_ids) + max_tokens)

    def _schedule_decodes(self, builder: PlanBuilder) -> int:
        """Plan a token of every sequence that lacks one only; return how many they attend to."""
        drafts = self._drafts
        context = 0
        # Preemption shortens the list at its end: those there have no row yet.
        for sequence in self._running.decoding:
            length = sequence.length
            if length in (sequence.max_length, sequence.num_scheduled):
                continue  # its last token is being sampled and nothing follows it, or it is held
            if length <= sequence.capacity or self._extend(sequence):
                if drafts is None:
                    builder.add_decode(sequence)
                else:
                    # Every sequence that decodes after this one still has its token.
                    room = self._max_tokens - builder.num_tokens - len(self._running.decoding)
                    drafts.add_row(builder, sequence, max_tokens=room)
                context += length
        return context

    def _extend(self, sequence: Sequence) -> bool:
        """Find room for one more token; False if that took preempting the sequence itself."""
        while not self._memory.extend(sequence, 1):
            victim = self._running.last
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take everything from a running sequence, which later starts again."""
        self._release(sequence)
        sequence.num_preemptions += 1
        self._totals.num_preemptions += 1
        self._waiting.push(sequence)

    def _admit(self) -> None:
        """Let waiting sequences run while slots and pages last, as many as a step can need."""
        num_tokens = 0
        while len(self._running) < self._max_sequences and num_tokens < self._max_tokens:
            sequence = self._waiting.first
            if sequence is None:
                return
            hit, awaited = self._memory.find(sequence)
            if awaited is not None:
                self._waiting.hold(sequence, awaited)
                continue
            if self._memory.evicts(sequence, hit):
                sequence, hit = self._nearest_to_cache(sequence, hit)
            if not self._memory.has_room(sequence, hit):
                return  # nobody overtakes it, or a long prompt might wait for ever
            self._waiting.start(sequence, self._clock())
            self._memory.enter(sequence, self._running.take_slot(), hit)
            self._running.add(sequence)
            num_tokens += sequence.length - sequence.num_scheduled
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_cached
                self._totals.prefix_queries += sequence.num_prompt
                self._totals.prefix_hits += sequence.num_cached

    def _nearest_to_cache(self, first: Sequence, hit: PrefixHit) -> tuple[Sequence, PrefixHit]:
        """Return the sequence to run instead of the first in the queue, and its prefix hit.

        It is the one that finds most of itself in the cache, among the next few of the same
        priority: soon it might not. Nobody is passed over more often than there are such places.
        """
        if first.num_passed == MAX_PASSED:
            return first, hit
        best, most = first, hit
        for sequence in self._waiting.next(MAX_PASSED):
            if sequence.order[0] != first.order[0]:
                break
            if not self._memory.finds_more(sequence, most.num_pages):
                continue
            found, awaited = self._memory.find(sequence)
            if awaited is None and found.num_pages > most.num_pages:
                best, most = sequence, found
        if best is not first:
            first.num_passed += 1
        return best, most

    def _schedule_prefills(self, builder: PlanBuilder, context: int) -> None:
        """Plan the next tokens of prompts, as many as the step has room and time for."""
        if builder.num_tokens == self._max_tokens:
            return
        prompts = self._running.prefilling
        if self.config.whole_prompts:
            shares = whole(prompts, self._max_tokens)
        elif all(sequence.is_jumping for sequence in prompts) and not are_jumps_worth(
            self.config,
            num_decodes=builder.num_singles,
            num_jumps=len(prompts),
            num_tokens=sum(sequence.length - sequence.num_scheduled for sequence in prompts),
        ):
            shares = [(sequence, 1) for sequence in prompts]
        else:
            budget = prefill_budget(
                self.config,
                max_tokens=self._max_tokens,
                num_decodes=builder.num_tokens,
                decode_context=context,
                prompts=prompts,
            )
            shares = divide(prompts, budget, self.config.work)
        for sequence, num_tokens in shares:
            self._add_chunk(builder, sequence, num_tokens)

    def _add_chunk(self, builder: PlanBuilder, sequence: Sequence, num_tokens: int) -> None:
        """Plan the next tokens of a prompt, at most `num_tokens`, and give it pages for them."""
        num_tokens = min(num_tokens, self._memory.max_stop(sequence) - sequence.num_scheduled)
        if num_tokens == 0:
            return  # a step in flight fills what it may have at once
        has_pages = self._memory.extend(sequence, num_tokens)
        assert has_pages, "a page that was promised is not there"
        if not sequence.is_assigned:
            builder.assign(sequence)
            if sequence.scheduled_s is None:
                sequence.scheduled_s = self._clock()
        builder.add_chunk(sequence, num_tokens)
        if sequence.is_decoding:
            self._running.begin_decoding(sequence)

    def finish_if_done(self, sequence: Sequence, token_id: int) -> None:
        """End a sequence whose newest token is a stop token, or its last allowed one."""
        if token_id in sequence.stop_ids and self._may_stop(sequence):
            stop_reason = None if token_id in sequence.eos_ids else token_id
            self.finish(sequence, FinishReason.STOP, stop_reason=stop_reason)
        elif sequence.num_known == sequence.max_length:
            self.finish(sequence, FinishReason.LENGTH)

    def _finish_empty(self, sequence: Sequence) -> None:
        """End a sequence whose request allows no token at all."""
        constraints = sequence.request.params.constraints
        position = len(sequence.output_ids)
        self.finish(
            sequence,
            FinishReason.ERROR,
            error=f"{' and '.join(constraints) or 'the logits processors'} allow no token"
            f" after {position} tokens of the answer",
            error_param=next(iter(constraints), None),
        )

    def _may_stop(self, sequence: Sequence) -> bool:
        return len(sequence.output_ids) >= sequence.request.params.min_tokens

    def _release(self, sequence: Sequence) -> None:
        """Take back the slot and the pages of a sequence, and ignore what is in flight of it."""
        for _, sequences in self._in_flight:
            if sequence in sequences:
                sequences[sequences.index(sequence)] = None
        self._running.remove(sequence)
        self._waiting.release(self._memory.leave(sequence))
