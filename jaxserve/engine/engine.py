"""The engine: schedule, dispatch and commit steps, and collect the tokens of each client."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.plan import DeferredSamplePlan, PendingStep, Runner, StepLimits, StepPlan
from jaxserve.api.request import FinishReason, Request
from jaxserve.api.tokens import End, Start, TokenBatch
from jaxserve.engine.grammars import Grammars
from jaxserve.engine.scheduler import Scheduler
from jaxserve.engine.sequence import Sequence, SequenceGroup, Update
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.matchers import MatcherPool
from jaxserve.observability.stats import EngineMetrics, FinishedStats, StepStats
from jaxserve.observability.timeline import StepRecord, Timeline

GENERATES = (
    "this model generates text: for embeddings, scores and rankings it must be started with"
    " --runner pooling"
)
POOLS = "this model pools prompts into vectors and generates no text"
# For a language model started with --runner pooling.
COULD_GENERATE = f"{POOLS}: to generate, it must be started with --runner generate"

# How long a step may be delayed for token bitmasks, as a share of the duration of the last step.
PATIENCE = 0.5
# How often to check for new requests while only grammars are being compiled.
IDLE_S = 0.005


class Engine:
    """Runs requests in steps. Not thread-safe.

    `add` requests, then call `step` while `has_work`. The engine handles tokens only: an
    `OutputProcessor` turns its batches into events with text, finds stop strings, and calls
    `finish`. Every choice of a request ends with exactly one `End`, unless its client calls
    `finish` or `leave`. `step` raises the runner's exceptions, and AssertionError for a broken
    invariant; after an exception the engine must not be used any more.

    matchers: None if structured outputs are not supported. clock: returns seconds, like
    `time.monotonic`. `timeline` records how long the parts of recent steps took.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        limits: ModelLimits,
        *,
        matchers: MatcherPool | None = None,
        metrics: EngineMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        # With async scheduling, a step is planned while earlier ones run on the device.
        is_async = scheduler.config.async_scheduling
        self._max_in_flight = runner.max_in_flight if is_async else 1
        self._in_flight: deque[tuple[StepPlan | DeferredSamplePlan, PendingStep]] = deque()
        self._grammars = None if matchers is None else Grammars(scheduler, matchers)
        self._defers_all = False  # whether the newest step defers all sampling
        # When the newest result was read, and how long the newest step took.
        self._finished_s = self._step_s = 0.0
        # Unfinished requests, by id.
        self._groups: dict[str, SequenceGroup] = {}
        self._outbox: defaultdict[int, TokenBatch] = defaultdict(TokenBatch)
        self._observed = scheduler.stats()
        self.timeline = Timeline(clock)
        # Latencies to report in the next StepStats.
        self._first_token_s: list[float] = []
        self._inter_token_s: Counter[float] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._scheduler.has_unfinished or self._in_flight or self._outbox)

    def add(self, request: Request, *, client: int = 0, first_key: int = 0) -> None:
        """Queue a request. Batches identify its choices by first_key, first_key + 1, ...

        Raises InvalidRequestError if the request can never be served, and OverloadedError if the
        queue is full. Then no batch mentions the request.
        """
        config, limits = self._scheduler.config, self._limits
        if request.pools != config.pools:
            reason = COULD_GENERATE if limits.can_generate else POOLS
            raise InvalidRequestError(GENERATES if request.pools else reason, param="model")
        request.check(
            vocab_size=limits.vocab_size,
            max_model_len=config.max_model_len,
            max_logprobs=limits.max_logprobs,
        )
        if limits.check is not None:
            limits.check(request.params)
        if request.params.structured_outputs is not None and self._grammars is None:
            raise InvalidRequestError(
                "structured_outputs needs a tokenizer, but the engine has none",
                param="structured_outputs",
            )
        group = self._scheduler.add(request)
        group.client, group.first_key = client, first_key
        self._groups[request.id] = group
        if self._grammars is not None:
            self._grammars.begin(group)

    def abort(self, request_id: str) -> None:
        """End the unfinished choices of a request; the next `step` returns their ends."""
        group = self._groups.get(request_id)
        if group is None:
            return
        for sequence in self._scheduler.abort(request_id):
            self._end(self._outbox[sequence.group.client], sequence)

    def finish(
        self,
        request_id: str,
        index: int,
        *,
        num_tokens: int,
        reason: FinishReason = FinishReason.STOP,
    ) -> None:
        """End a choice whose text is complete with its first `num_tokens` tokens.

        reason: STOP (a stop string was found) by default. No later batch mentions the choice. Does
        nothing if the choice has already ended.
        """
        group = self._groups.get(request_id)
        if group is None or group.sequences[index].is_finished:
            return
        sequence = group.sequences[index]
        self._scheduler.finish(sequence, reason)
        self._close(sequence, num_tokens=num_tokens)

    def leave(self, client: int) -> None:
        """End all requests of a client that has disconnected, and discard its batch."""
        for group in [group for group in self._groups.values() if group.client == client]:
            for sequence in self._scheduler.abort(group.request.id):
                self._close(sequence, num_tokens=len(sequence.output_ids))
        self._outbox.pop(client, None)

    def step(self) -> dict[int, TokenBatch]:
        """Plan and dispatch the next step, and wait for the oldest one in flight if necessary.

        Return the new batches by client. They belong to the caller.
        """
        timeline = self.timeline
        timeline.started()
        limits = self._runner.limits
        if self._grammars is not None and (self._grammars.is_busy or self._defers_all):
            self._sample_deferred(self._grammars, limits)
            self._defers_all = self._grammars.is_running and limits.num_deferred_samples > 0
        plan = self._scheduler.schedule(limits, defers_all=self._defers_all)
        timeline.scheduled()
        if plan is not None:
            pending = self._runner.dispatch(plan)
            timeline.dispatched(plan, pending)
            self._in_flight.append((plan, pending))
            while len(self._in_flight) >= self._max_in_flight:
                self._finish_step()
        elif self._in_flight:
            self._finish_step()
        elif self._grammars is not None and self._grammars.is_busy:
            self._grammars.wait(IDLE_S, is_idle=True)
        else:
            assert not self._scheduler.has_unfinished, "no sequence can run"
        batches, self._outbox = self._outbox, defaultdict(TokenBatch)
        record = timeline.ended(is_busy=bool(self._in_flight) or self._scheduler.has_unfinished)
        if self._metrics is not None:
            self._observe_step(self._metrics, record)
        return batches

    def reset_prefix_cache(self) -> None:
        """Clear the prefix cache."""
        self._scheduler.reset_prefix_cache()

    def stats(self) -> StepStats:
        """Return the current gauges, and the counts since the engine was created."""
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Assert the invariants of everything the engine owns."""
        self._scheduler.check_integrity()
        assert sum(isinstance(plan, StepPlan) for plan, _ in self._in_flight) < self._max_in_flight
        assert all(group.num_unfinished for group in self._groups.values()), (
            "an end was not reported"
        )
        assert bool(self._groups) == self._scheduler.has_unfinished

    def _sample_deferred(self, grammars: Grammars, limits: StepLimits) -> None:
        """Process what grammar matchers have computed, and dispatch the deferred sampling."""
        if self._in_flight:
            grammars.wait(PATIENCE * self._step_s, is_idle=False)
        for update in grammars.follow():
            self._emit([update])
        plan = grammars.plan_deferred(limits)
        if plan is not None:
            self._in_flight.append((plan, self._runner.sample_deferred(plan)))

    def _finish_step(self) -> None:
        """Wait for the oldest step or deferred sampling, and put its result into the outbox."""
        plan, pending = self._in_flight.popleft()
        result = pending.wait()
        now_s = self._clock()
        if isinstance(plan, StepPlan):
            self.timeline.waited()
            self._step_s = now_s - self._finished_s
        else:
            self.timeline.sampled_deferred()
        self._finished_s = now_s
        updates = self._scheduler.commit(plan, result)
        self.timeline.committed()
        if self._grammars is not None and self._grammars.is_busy:
            self._grammars.note(updates)
        self._emit(updates)

    def _emit(self, updates: Iterable[Update]) -> None:
        """Add the results of a step to the clients' batches."""
        now_s = self._clock()
        first_token_s: list[float] = []
        last_tokens_s: list[float] = []
        # A hot loop of the host: one iteration per sequence and step.
        for sequence, token_ids, logprobs in updates:
            group = sequence.group
            batch = self._outbox[group.client]
            if token_ids:
                if not sequence.is_reported:
                    self._start(batch, sequence)
                if logprobs is not None:
                    batch.logprobs.update(enumerate(logprobs, start=len(batch.token_ids)))
                key = group.first_key + sequence.index
                batch.keys.append(key)
                batch.token_ids += token_ids
                if len(token_ids) > 1:
                    batch.keys.extend([key] * (len(token_ids) - 1))
                    # Tokens of the same step have no time between them.
                    last_tokens_s.extend([now_s] * (len(token_ids) - 1))
                if sequence.last_token_s is None:
                    first_token_s.append(now_s - sequence.request.arrival_s)
                else:
                    last_tokens_s.append(sequence.last_token_s)
                sequence.last_token_s = now_s
            elif sequence.vector is not None:
                self._start(batch, sequence)
            if sequence.finish_reason is not None:
                self._end(batch, sequence)
        if self._metrics is not None:
            self._first_token_s += first_token_s
            # Few distinct times: most sequences got their last token in the same step.
            for last_s, count in Counter(last_tokens_s).items():
                self._inter_token_s[now_s - last_s] += count

    def _start(self, batch: TokenBatch, sequence: Sequence) -> None:
        """Add the start of a choice, with what is known at its first token."""
        sequence.is_reported = True
        wants_prompt = sequence.request.params.prompt_logprobs is not None and sequence.index == 0
        batch.starts.append(
            Start(
                sequence.group.first_key + sequence.index,
                sequence.num_cached_tokens or 0,
                sequence.scheduled_s,
                sequence.first_token_s,
                tuple(sequence.prompt_logprobs) if wants_prompt else None,
            )
        )

    def _end(self, batch: TokenBatch, sequence: Sequence) -> None:
        """Add the end of a choice."""
        reason, stop_reason = sequence.finish_reason, sequence.stop_reason
        assert reason is not None
        key = sequence.group.first_key + sequence.index
        batch.ends.append(
            End(
                key,
                reason,
                sequence.times,
                stop_reason,
                sequence.error,
                sequence.error_param,
                sequence.vector,
                is_complete=reason is FinishReason.STOP and not sequence.has_stopped,
            )
        )
        self._close(sequence, num_tokens=len(sequence.output_ids))

    def _close(self, sequence: Sequence, *, num_tokens: int) -> None:
        """Drop a finished choice. Its answer is its first `num_tokens` tokens."""
        group = sequence.group
        group.lengths.append(num_tokens)
        if group.num_unfinished == 0:
            # Already removed if several choices ended at once.
            self._groups.pop(sequence.request.id, None)
        if self._metrics is not None:
            self._observe_finished(self._metrics, sequence, num_tokens)

    def _observe_finished(
        self, metrics: EngineMetrics, sequence: Sequence, num_tokens: int
    ) -> None:
        assert sequence.finish_reason is not None
        lengths, num_choices = sequence.group.lengths, sequence.request.params.n
        metrics.observe_finished(
            FinishedStats(
                reason=sequence.finish_reason,
                times=sequence.times,
                num_prompt_tokens=sequence.num_prompt,
                num_cached_tokens=sequence.num_cached_tokens or 0,
                num_generated_tokens=num_tokens,
                longest=max(lengths) if len(lengths) == num_choices else None,
                params=sequence.request.params,
            )
        )

    def _observe_step(self, metrics: EngineMetrics, record: StepRecord | None) -> None:
        before, self._observed = self._observed, self._scheduler.stats()
        metrics.observe_step(
            self._observed.since(
                before,
                first_token_s=tuple(self._first_token_s),
                inter_token_s=self._inter_token_s,
                record=record,
            )
        )
        self._first_token_s, self._inter_token_s = [], Counter()
