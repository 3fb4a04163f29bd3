"""Output processing: turn an engine's token batches into events with text.

`OutputProcessor` runs in the process of the client. `TextEngine` combines it with an engine for
callers without an event loop.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace
from tokenizers import Tokenizer

from jaxserve.api.request import FinishReason, PositionLogprobs, Request, RequestMetrics, TokenEvent
from jaxserve.api.tokens import End, Start, TokenBatch
from jaxserve.errors import INTERNAL_ERROR, InvalidRequestError
from jaxserve.frontend.detokenizer import Detokenizer
from jaxserve.frontend.repetition import RepetitionDetector

logger = logging.getLogger(__name__)


class RequestEnder(Protocol):
    """An engine, or a connection to one, through which an output processor ends requests."""

    def finish(self, request_id: str, index: int, *, num_tokens: int, reason: FinishReason) -> None:
        """See Engine.finish."""
        ...

    def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        ...


@dataclass(slots=True, eq=False)
class _Answer:
    """A request, and its unfinished choices by key."""

    request: Request
    choices: dict[int, "_Choice"] = field(default_factory=dict[int, "_Choice"])


@dataclass(slots=True, eq=False)
class _Choice:
    """State of one choice. start: None until its first token."""

    answer: _Answer
    key: int
    index: int
    detokenizer: Detokenizer | None
    detector: RepetitionDetector | None
    start: Start | None = None
    num_tokens: int = 0

    def times(self, finished_s: float) -> RequestMetrics:
        """Return the times of a choice that was ended here rather than by the engine."""
        start = self.start
        return RequestMetrics(
            arrival_s=self.answer.request.arrival_s,
            scheduled_s=None if start is None else start.scheduled_s,
            first_token_s=None if start is None else start.first_token_s,
            finished_s=finished_s,
        )


class OutputProcessor:
    """Produces the events of one client's requests. Not thread-safe.

    Unless a request is closed early, each of its choices gets exactly one event with a
    finish_reason, and the request exactly one with request_finished. A choice ends here when its
    text contains a stop string; the engine is notified, and tokens it computed meanwhile are
    ignored.

    tokenizer: None produces events without text. clock: the engine's clock, in seconds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        engine: RequestEnder,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._clock = clock
        self._answers: dict[str, _Answer] = {}
        self._choices: dict[int, _Choice] = {}
        self._next_key = 0

    def open(self, request: Request) -> int:
        """Register a request; return the key of its first choice, for `Engine.add`.

        Raises InvalidRequestError without registering the request.
        """
        params = request.params
        if request.id in self._answers:
            raise InvalidRequestError(
                f"request_id {request.id!r} is already in use", param="request_id"
            )
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError(
                f"stop must be empty without a tokenizer, got {len(params.stop)} strings",
                param="stop",
            )
        first_key = self._next_key
        has_text = params.detokenize and not request.pools
        tokenizer = self._tokenizer if has_text else None
        answer = _Answer(request)
        for index in range(params.n):
            detokenizer = None if tokenizer is None else Detokenizer(tokenizer, request)
            repetition = params.repetition_detection
            detector = None if repetition is None else RepetitionDetector(repetition)
            key = first_key + index
            answer.choices[key] = _Choice(answer, key, index, detokenizer, detector)
        # Change state only after everything that can raise.
        self._next_key += params.n
        self._answers[request.id] = answer
        self._choices.update(answer.choices)
        return first_key

    def close(self, request_id: str) -> None:
        """Forget a request. Does nothing if it has finished."""
        answer = self._answers.pop(request_id, None)
        for key in () if answer is None else answer.choices:
            del self._choices[key]

    def feed(self, batch: TokenBatch) -> list[TokenEvent]:
        """Return the events of a batch, one for each choice in it."""
        for start in batch.starts:
            if start.key in self._choices:
                self._choices[start.key].start = start
        positions: dict[int, list[int]] = {}
        for position, key in enumerate(batch.keys):
            positions.setdefault(key, []).append(position)
        ends = {end.key: end for end in batch.ends}
        events: list[TokenEvent] = []
        for key in positions | ends:
            # The engine may still send tokens of choices that have ended or were closed.
            choice = self._choices.get(key)
            if choice is None:
                continue
            try:
                events.append(self._advance(choice, batch, positions.get(key, []), ends.get(key)))
            except Exception:
                # A failure of one request must not affect the others.
                request_id = choice.answer.request.id
                logger.exception("request %r failed", request_id)
                self._engine.abort(request_id)
                events += self.fail(request_id, INTERNAL_ERROR)
        return events

    def fail(self, request_id: str, error: str) -> list[TokenEvent]:
        """End the unfinished choices of a request with an error, and return their events."""
        return [
            self._event(
                choice,
                End(choice.key, FinishReason.ERROR, choice.times(self._clock()), error=error),
            )
            for choice in list(self._answers[request_id].choices.values())
        ]

    def _advance(
        self, choice: _Choice, batch: TokenBatch, positions: Sequence[int], end: End | None
    ) -> TokenEvent:
        """Return the event of a choice in a batch.

        Ends the choice if its text contains a stop string, or if it repeats itself.
        """
        params = choice.answer.request.params
        is_first = choice.num_tokens == 0 and bool(positions)
        text = ""
        token_ids = [batch.token_ids[position] for position in positions]
        detokenizer, detector = choice.detokenizer, choice.detector
        # A stop token is reported, but has no text.
        is_text = (
            end is None
            or end.is_complete
            or end.finish_reason is not FinishReason.STOP
            or params.include_stop_str_in_output
        )
        stop_string: str | None = None
        is_stuck = False
        for count, token_id in enumerate(token_ids, start=1):
            if detokenizer is not None and (is_text or count < len(token_ids)):
                text += detokenizer.push(token_id)
                stop_string = detokenizer.stop_string
            if detector is not None and detector.push(token_id):
                is_stuck = choice.num_tokens + count >= params.min_tokens
            if stop_string is not None or is_stuck:
                del token_ids[count:]
                break
        if detokenizer is not None and (end is not None or is_stuck):
            text += detokenizer.finish()
        choice.num_tokens += len(token_ids)
        if stop_string is not None or is_stuck:
            # Takes precedence over a length limit reached with the same token.
            reason, stop_reason = FinishReason.STOP, stop_string
            if stop_string is None:
                reason, stop_reason = FinishReason.REPETITION, "repetition_detected"
            if end is not None:
                end = replace(
                    end,
                    finish_reason=reason,
                    stop_reason=stop_reason,
                    error=None,
                    error_param=None,
                )
            else:
                end = End(choice.key, reason, choice.times(self._clock()), stop_reason)
                self._engine.finish(
                    choice.answer.request.id,
                    choice.index,
                    num_tokens=choice.num_tokens,
                    reason=reason,
                )
        logprobs: tuple[PositionLogprobs, ...] = ()
        if batch.logprobs and params.logprobs is not None:
            logprobs = tuple(batch.logprobs[p] for p in positions[: len(token_ids)])
        return self._event(
            choice,
            end,
            token_ids=tuple(token_ids),
            text=text,
            logprobs=logprobs,
            prompt_logprobs=choice.start.prompt_logprobs if is_first and choice.start else None,
        )

    def _event(
        self,
        choice: _Choice,
        end: End | None,
        *,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[PositionLogprobs, ...] = (),
        prompt_logprobs: tuple[PositionLogprobs, ...] | None = None,
    ) -> TokenEvent:
        """Return an event. With an end, it is the last one of its choice."""
        answer = choice.answer
        request = answer.request
        if end is not None:
            del answer.choices[choice.key]
            del self._choices[choice.key]
            if not answer.choices:
                del self._answers[request.id]
        return TokenEvent(
            request_id=request.id,
            index=choice.index,
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=0 if choice.start is None else choice.start.num_cached_tokens,
            finish_reason=None if end is None else end.finish_reason,
            stop_reason=None if end is None else end.stop_reason,
            error=None if end is None else end.error,
            error_param=None if end is None else end.error_param,
            vector=None if end is None else end.vector,
            request_finished=not answer.choices,
            metrics=None if end is None else end.times,
        )
