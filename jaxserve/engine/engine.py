"""The engine's loop: schedule, dispatch, commit, and from tokens to events."""

import logging
import time
from collections import deque
from collections.abc import Callable

from tokenizers import Tokenizer

from jaxserve.engine.detokenize import Detokenizer
from jaxserve.engine.scheduler import Scheduler
from jaxserve.engine.sequence import Sequence, Update
from jaxserve.errors import InvalidRequestError
from jaxserve.metrics import EngineMetrics, FinishedStats, StepStats
from jaxserve.plan import PendingStep, Runner, StepPlan
from jaxserve.request import FinishReason, PositionLogprobs, Request, TokenEvent
from jaxserve.timeline import StepRecord, Timeline

logger = logging.getLogger(__name__)


class Engine:
    """Serves requests by steps; for one thread.

    `add` requests, then call `step` while `has_work`. Every choice of every request added ends in
    exactly one event with a finish_reason, whatever happens to it, and every request in exactly
    one with request_finished. The exceptions that leave `step` are those of the runner and of
    broken invariants: after one the engine is of no further use.

    vocab_size: token ids a request may name. tokenizer: None gives events without text. clock:
    seconds, as `time.monotonic`. `timeline` tells where the time of recent steps went.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        metrics: EngineMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clock = clock
        # Steps under way: with async scheduling one is computed while its successor is planned.
        self._max_in_flight = 2 if scheduler.config.async_scheduling else 1
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()
        # The choices whose last event is still to come.
        self._open: dict[Sequence, Detokenizer | None] = {}
        self._outbox: list[TokenEvent] = []
        self._observed = scheduler.stats()
        self.timeline = Timeline(clock)
        # What the next StepStats will tell.
        self._first_token_s: list[float] = []
        self._inter_token_s: dict[float, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._scheduler.has_unfinished or self._in_flight or self._outbox)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises InvalidRequestError if it cannot be served at all, and OverloadedError if it cannot
        be served now; then there will be no events of it.
        """
        params = request.params
        request.check(
            vocab_size=self._vocab_size, max_model_len=self._scheduler.config.max_model_len
        )
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError(
                f"stop must be empty where there is no tokenizer, got {len(params.stop)} strings",
                param="stop",
            )
        # Before the scheduler takes the request: if this raises, nothing has happened.
        detokenizers = [self._new_detokenizer(request) for _ in range(params.n)]
        group = self._scheduler.add(request)
        self._open.update(zip(group.sequences, detokenizers, strict=True))

    def abort(self, request_id: str) -> None:
        """End a request; the next `step` returns its last events, which have no more text.

        No-op once it has finished.
        """
        for sequence in self._scheduler.abort(request_id):
            self._outbox.append(self._event(sequence, reason=FinishReason.ABORT))

    def step(self) -> list[TokenEvent]:
        """Plan and start the next step, finish the oldest one under way, return what happened."""
        timeline = self.timeline
        timeline.started()
        plan = self._scheduler.schedule()
        timeline.scheduled()
        if plan is not None:
            pending = self._runner.dispatch(plan)
            timeline.dispatched(plan, pending)
            self._in_flight.append((plan, pending))
        events, self._outbox = self._outbox, []
        if len(self._in_flight) == self._max_in_flight or (plan is None and self._in_flight):
            events += self._finish_step()
        else:
            assert plan is not None or not self._scheduler.has_unfinished, "nothing can ever run"
        is_busy = bool(self._in_flight) or self._scheduler.has_unfinished
        record = timeline.ended(is_busy=is_busy)
        if self._metrics is not None:
            self._observe_step(self._metrics, record)
        return events

    def fail(self, error: str) -> list[TokenEvent]:
        """End every choice by an error, after an exception has left `step`; the last call of all.

        What the scheduler holds stays where it is: its state can no longer be trusted.
        """
        events = [
            self._event(sequence, reason=FinishReason.ERROR, error=error)
            for sequence in list(self._open)
        ]
        if self._metrics is not None:
            self._metrics.observe_step(
                StepStats(
                    num_running=0,
                    num_waiting=0,
                    num_pages=self._observed.num_pages,
                    num_pages_used=0,
                )
            )
        return events

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._scheduler.reset_prefix_cache()

    def stats(self) -> StepStats:
        """Gauges as they are now; counts since the engine was made."""
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Assert the invariants of everything the engine owns."""
        self._scheduler.check_integrity()
        assert len(self._in_flight) < self._max_in_flight
        assert all(not sequence.is_finished for sequence in self._open), "an end was not told"
        assert bool(self._open) == self._scheduler.has_unfinished

    def _finish_step(self) -> list[TokenEvent]:
        """Wait for the oldest step under way and turn its result into events."""
        plan, pending = self._in_flight.popleft()
        result = pending.wait()
        self.timeline.waited()
        updates = self._scheduler.commit(plan, result)
        self.timeline.committed()
        now_s = self._clock()
        events: list[TokenEvent] = []
        for update in updates:
            sequence = update[0]
            if sequence not in self._open:
                continue  # its request has failed just now, by another of its choices
            try:
                events.append(self._advance(update, now_s))
            except Exception:
                # What a request contains must not stop the others.
                logger.exception("request %r failed", sequence.request.id)
                events += self._fail(sequence)
        return events

    def _advance(self, update: Update, now_s: float) -> TokenEvent:
        """Return the event of one sequence's update; end it if its text has a stop string now."""
        sequence, token_id, logprobs = update
        params = sequence.request.params
        reason, stop_reason = sequence.finish_reason, sequence.stop_reason
        text = ""
        detokenizer = self._open[sequence]
        if detokenizer is not None:
            # A stop token is reported, but it is no text.
            if token_id is not None and (
                reason is not FinishReason.STOP or params.include_stop_str_in_output
            ):
                text = detokenizer.push(token_id)
            if reason is not None:
                text += detokenizer.finish()
            if detokenizer.stop_string is not None:
                # Also if the last token allowed completed it: that it stopped says more.
                reason, stop_reason = FinishReason.STOP, detokenizer.stop_string
                if not sequence.is_finished:
                    self._scheduler.finish(sequence, reason, stop_reason=stop_reason)
        if token_id is not None and self._metrics is not None:
            self._observe_token(sequence, now_s)
        return self._event(
            sequence,
            token_ids=() if token_id is None else (token_id,),
            text=text,
            logprobs=() if logprobs is None else (logprobs,),
            reason=reason,
            stop_reason=stop_reason,
            error=sequence.error,
        )

    def _fail(self, sequence: Sequence) -> list[TokenEvent]:
        """End the whole request of a sequence, because something in it cannot be processed."""
        group = sequence.group
        error = "an internal error has ended this request"
        self._scheduler.abort(group.request.id, reason=FinishReason.ERROR, error=error)
        still_open = [choice for choice in group.sequences if choice in self._open]
        return [
            self._event(choice, reason=FinishReason.ERROR, error=error) for choice in still_open
        ]

    def _event(
        self,
        sequence: Sequence,
        *,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[PositionLogprobs, ...] = (),
        reason: FinishReason | None = None,
        stop_reason: int | str | None = None,
        error: str | None = None,
    ) -> TokenEvent:
        """Make an event; with a reason it is the last one of its choice."""
        group = sequence.group
        request = group.request
        if reason is not None:
            self._observe_finished(sequence, reason)
            del self._open[sequence]
        prompt_logprobs = None
        is_first = sequence.index == 0 and token_ids and len(sequence.output_ids) == 1
        if is_first and request.params.prompt_logprobs is not None:
            prompt_logprobs = tuple(sequence.prompt_logprobs)
        return TokenEvent(
            request_id=request.id,
            index=sequence.index,
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=sequence.num_cached_tokens or 0,
            finish_reason=reason,
            stop_reason=stop_reason,
            error=error,
            request_finished=reason is not None
            and not any(choice in self._open for choice in group.sequences),
            metrics=None if reason is None else sequence.times,
        )

    def _new_detokenizer(self, request: Request) -> Detokenizer | None:
        return None if self._tokenizer is None else Detokenizer(self._tokenizer, request)

    def _observe_token(self, sequence: Sequence, now_s: float) -> None:
        """Take down how long a token was waited for; `_observe_step` tells it with all others."""
        last_s, sequence.last_token_s = sequence.last_token_s, now_s
        if last_s is None:
            self._first_token_s.append(now_s - sequence.request.arrival_s)
        else:
            waited_s = now_s - last_s
            self._inter_token_s[waited_s] = self._inter_token_s.get(waited_s, 0) + 1

    def _observe_finished(self, sequence: Sequence, reason: FinishReason) -> None:
        if self._metrics is None:
            return
        self._metrics.observe_finished(
            FinishedStats(
                reason=reason,
                times=sequence.times,
                num_prompt_tokens=sequence.num_prompt,
                num_cached_tokens=sequence.num_cached_tokens or 0,
                num_generated_tokens=len(sequence.output_ids),
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
        self._first_token_s, self._inter_token_s = [], {}
