"""Run requests and count their tokens, for chats and completions."""

import asyncio
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from jaxserve.access.policy import Demand, Used
from jaxserve.api.request import (
    FinishReason,
    PositionLogprobs,
    Request,
    RequestMetrics,
    TokenEvent,
    whole_time,
)
from jaxserve.chat.reasoning_tokens import ReasoningTokens
from jaxserve.client.streams import merge
from jaxserve.errors import EngineDeadError, InvalidRequestError, OverloadedError
from jaxserve.frontend.schema.parsing import renamed
from jaxserve.server.errors import GenerationError, ShuttingDownError
from jaxserve.server.http.record import RequestRecord
from jaxserve.server.models import MAX_AT_ONCE, ServedModel
from jaxserve.server.schema.answers import (
    CompletionTokensDetails,
    PromptTokensDetails,
    Timing,
    Usage,
)
from jaxserve.server.state import ServerState

type Run = Callable[[Request], AsyncGenerator[TokenEvent]]


class Tally:
    """Counts the tokens and times of an answer.

    counts_output: whether to count generated tokens. reasoning: creates the counter of reasoning
    tokens for one choice; None to count none.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        counts_output: bool = True,
        reasoning: Callable[[], ReasoningTokens] | None = None,
    ) -> None:
        self._counts_output = counts_output
        self._times: list[RequestMetrics] = []
        self._reasoning = reasoning
        self._prompts = {request.id: len(request.prompt_ids) for request in requests}
        self._cached: dict[str, int] = {}
        # By choice: its request's id and its index.
        self._generated: Counter[tuple[str, int]] = Counter()
        self._counters: dict[tuple[str, int], ReasoningTokens] = {}

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in all prompts."""
        return sum(self._prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Number of tokens generated so far, over all choices."""
        return self._generated.total()

    def begin(self, event: TokenEvent) -> None:
        """Record the cached prompt tokens of an event. `add` counts its generated tokens."""
        if event.index == 0:
            self._cached[event.request_id] = event.num_cached_tokens

    def add(self, event: TokenEvent) -> None:
        """Count an event."""
        self.begin(event)
        choice = event.request_id, event.index
        self._generated[choice] += len(event.token_ids) if self._counts_output else 0
        if event.metrics is not None:
            self._times.append(event.metrics)
        if self._reasoning is not None:
            if choice not in self._counters:
                self._counters[choice] = self._reasoning()
            self._counters[choice].add(event.token_ids)

    def timing(self) -> Timing:
        """Return the times of the complete answer."""
        times = whole_time(self._times)
        if times is None:
            return Timing(None, None, None, None)
        num_later = self.completion_tokens - len(self._times)
        decode_ms = sum(_ms(each.first_token_s, each.finished_s) or 0.0 for each in self._times)
        total_ms = _ms(times.scheduled_s, times.finished_s)
        return Timing(
            time_to_first_token_ms=_ms(times.arrival_s, times.first_token_s),
            generation_time_ms=_ms(times.first_token_s, times.finished_s),
            queue_time_ms=_ms(times.arrival_s, times.scheduled_s),
            mean_itl_ms=decode_ms / num_later if num_later > 0 else UNSET,
            tokens_per_second=1000 * self.completion_tokens / total_ms if total_ms else None,
        )

    def usage(self, event: TokenEvent | None = None) -> Usage:
        """Return the usage so far: of all choices, or of the choice and prompt of `event`."""
        prompts, choices = list(self._prompts), list(self._generated)
        if event is not None:
            prompts, choices = [event.request_id], [(event.request_id, event.index)]
        prompt_tokens = sum(self._prompts[prompt] for prompt in prompts)
        completion_tokens = sum(self._generated[choice] for choice in choices)
        cached_tokens = sum(self._cached.get(prompt, 0) for prompt in prompts)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens),
        )
        if self._reasoning is not None:
            counters = (self._counters[choice] for choice in choices if choice in self._counters)
            count = sum(counter.count for counter in counters)
            usage.completion_tokens_details = CompletionTokensDetails(count)
        return usage


class Meter:
    """Counts the tokens that the engine computes. A prompt counts once its first event arrives."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._prompts = {request.id: len(request.prompt_ids) for request in requests}
        self._cached: dict[str, int] = {}
        self._completion_tokens = 0

    def add(self, event: TokenEvent) -> None:
        """Count an event."""
        cached = max(self._cached.get(event.request_id, 0), event.num_cached_tokens)
        self._cached[event.request_id] = cached
        self._completion_tokens += len(event.token_ids)

    def add_all_prompts(self) -> None:
        """Count also prompts without events, because the engine may have computed them."""
        self._cached = dict.fromkeys(self._prompts, 0) | self._cached

    def used(self) -> Used:
        """Return the counts so far."""
        return Used(
            prompt_tokens=sum(self._prompts[request_id] for request_id in self._cached),
            cached_tokens=sum(self._cached.values()),
            completion_tokens=self._completion_tokens,
        )


def _ms(start_s: float | None, stop_s: float | None) -> float | None:
    """Return the milliseconds between two times; None unless both are known."""
    return None if start_s is None or stop_s is None else 1000 * (stop_s - start_s)


@dataclass(slots=True)
class Collected:
    """A choice of an answer, collected from its events."""

    pieces: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason = FinishReason.STOP
    stop_reason: int | str | None = None
    vector: bytes = b""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    def add(self, event: TokenEvent) -> None:
        """Add the content of an event."""
        self.pieces.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        if event.finish_reason is not None:
            self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
        if event.vector is not None:
            self.vector = event.vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The requests of one answer: choice `i` of request `r` is choice `r * n + i` of the answer.

    field_names: names in the body for the engine's parameters, for error messages. run: yields the
    events of a request; by default, the engine's client.
    """

    state: ServerState
    model: ServedModel
    requests: tuple[Request, ...]
    record: RequestRecord
    field_names: Mapping[str, str] = field(default_factory=dict[str, str])
    run: Run | None = None

    @property
    def n(self) -> int:
        """Number of choices of each request."""
        return self.requests[0].params.n

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """Yield the events of all choices, each with the index of its choice in the answer.

        Closing the generator aborts the requests. Raises the engine's refusal before the first
        event. Later it raises InvalidRequestError if the request allows no token, GenerationError,
        EngineDeadError, or ShuttingDownError if the server stopped.
        """
        record = self.record
        record.model = self.model.name
        arrival_s = self.requests[0].arrival_s
        run = self.run or self.model.client.generate
        with renamed(self.field_names):
            async with self._admitted() as meter, aclosing(merged(run, self.requests)) as events:
                try:
                    async for index, event in events:
                        meter.add(event)
                        if event.finish_reason is not None:
                            record.finish_reason = event.finish_reason.value
                            record.error = event.error
                            self._check_end(event)
                        if record.first_token_s is None and event.token_ids:
                            record.first_token_s = time.monotonic() - arrival_s
                        yield index, event
                except (asyncio.CancelledError, GeneratorExit):
                    meter.add_all_prompts()
                    record.finish_reason = FinishReason.ABORT.value
                    raise
                except OverloadedError:
                    self.state.metrics.observe_rejection("queue", model_name=self.model.name)
                    raise

    @asynccontextmanager
    async def _admitted(self) -> AsyncGenerator[Meter]:
        """Admit the requests, yield a meter of their tokens, and settle the admission."""
        demand = Demand(
            model=self.model.name,
            requests=self.requests,
            is_batch=self.record.batch is not None,
        )
        admission = await self.state.policy.admit(self.record.principal, demand)
        meter = Meter(self.requests)
        try:
            yield meter
        finally:
            admission.settle(meter.used())

    async def collect(self, tally: Tally) -> list[Collected]:
        """Return the choices of the whole answer, counted by `tally`."""
        choices = [Collected() for _ in range(self.n * len(self.requests))]
        with self.recorded(tally):
            async with aclosing(self.events()) as events:
                async for index, event in events:
                    tally.add(event)
                    choices[index].add(event)
        # Only the first choice of each request has them.
        for index, choice in enumerate(choices):
            choice.prompt_logprobs = choices[index - index % self.n].prompt_logprobs
        return choices

    @contextmanager
    def recorded(self, tally: Tally) -> Iterator[None]:
        """Record the tokens counted in the block, even if it raises."""
        try:
            yield
        finally:
            self.record.prompt_tokens = tally.prompt_tokens
            self.record.completion_tokens = tally.completion_tokens

    def _check_end(self, event: TokenEvent) -> None:
        """Raise an error if a choice was aborted or failed."""
        if event.finish_reason is FinishReason.ABORT:
            raise ShuttingDownError
        if event.finish_reason is FinishReason.ERROR:
            if event.error is not None and event.error_param is not None:
                raise InvalidRequestError(event.error, param=event.error_param)
            if not self.model.client.is_alive:
                raise EngineDeadError(event.error or "the engine has stopped")
            raise GenerationError(event.error or "the engine reported no reason")


async def at_intervals(
    events: AsyncIterable[tuple[int, TokenEvent]], num_tokens: int
) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """Yield the first event of each choice at once, and later ones merged to `num_tokens`."""
    buffered: dict[int, list[TokenEvent]] = {}
    begun: set[int] = set()
    async for index, event in events:
        pieces = buffered.setdefault(index, [])
        pieces.append(event)
        num_buffered = sum(len(piece.token_ids) for piece in pieces)
        if index not in begun or num_buffered >= num_tokens or event.finish_reason is not None:
            begun.add(index)
            yield index, merge(buffered.pop(index))


async def merged(run: Run, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """Run requests concurrently, and yield their events, each with the index of its choice.

    The requests are queued by turns, so that an answer with many prompts does not delay others.
    """
    if len(requests) == 1:
        async with aclosing(run(requests[0])) as events:
            async for event in events:
                yield event.index, event
        return
    turns = asyncio.Semaphore(MAX_AT_ONCE)
    # At most one event per request, because the client merges unread events.
    queue: asyncio.Queue[tuple[int, TokenEvent] | Exception] = asyncio.Queue(len(requests))

    async def feed(offset: int, request: Request) -> None:
        try:
            turn = request.params.n * min(offset // request.params.n, MAX_AT_ONCE - 1)
            async with turns, aclosing(run(replace(request, turn=turn))) as events:
                async for event in events:
                    await queue.put((offset + event.index, event))
        except Exception as error:  # noqa: BLE001 (raised again by the reader of the queue)
            await queue.put(error)

    tasks = [
        asyncio.create_task(feed(position * request.params.n, request))
        for position, request in enumerate(requests)
    ]
    try:
        num_unfinished = len(requests)
        while num_unfinished:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_unfinished -= item[1].request_finished
            yield item
    finally:
        for task in tasks:
            task.cancel()
