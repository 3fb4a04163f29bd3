"""From requests to events: what chats and completions do in the same way."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from jaxserve.client import EngineClient
from jaxserve.errors import EngineDeadError, OverloadedError
from jaxserve.request import FinishReason, PositionLogprobs, Request, TokenEvent
from jaxserve.server.errors import GenerationError, ShuttingDownError
from jaxserve.server.middleware import AccessRecord
from jaxserve.server.protocol.answers import PromptTokensDetails, Usage
from jaxserve.server.protocol.parsing import renamed
from jaxserve.server.state import ServedModel, ServerState

# Requests of one answer that the engine has at once: its queue is for others, too.
MAX_AT_ONCE = 256


class Tally:
    """Counts the tokens of an answer while they come; counts_output: also those generated."""

    def __init__(self, requests: Sequence[Request], *, counts_output: bool = True) -> None:
        self._counts_output = counts_output
        self.prompt_tokens = sum(len(request.prompt_ids) for request in requests)
        self.completion_tokens = 0
        self._cached: dict[str, int] = {}

    def add(self, event: TokenEvent) -> None:
        """Count an event."""
        self.completion_tokens += len(event.token_ids) if self._counts_output else 0
        if event.index == 0:
            self._cached[event.request_id] = event.num_cached_tokens

    def usage(self) -> Usage:
        """Return the count so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(sum(self._cached.values())),
        )


@dataclass(slots=True)
class Collected:
    """One choice of an answer, put together from its events."""

    pieces: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason = FinishReason.STOP
    stop_reason: int | str | None = None
    vector: bytes = b""

    @property
    def text(self) -> str:
        """All of its text so far."""
        return "".join(self.pieces)

    def add(self, event: TokenEvent) -> None:
        """Add what is new."""
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
    """Requests that make one answer: choice `i` of request `r` is the answer's `r * n + i`.

    field_names: what the engine's parameters are called by whoever is answered.
    """

    state: ServerState
    model: ServedModel
    requests: tuple[Request, ...]
    record: AccessRecord
    field_names: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def n(self) -> int:
        """Choices of each request."""
        return self.requests[0].params.n

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """Yield the events of all choices, each with its choice's index in the answer.

        Closing the generator aborts the requests. Raises what the engine refuses before the first
        event; later GenerationError, EngineDeadError, or ShuttingDownError if the server could
        not wait.
        """
        record = self.record
        record.model = self.model.name
        began_s = time.monotonic()
        with self.state.admitted(self.model), renamed(self.field_names):
            async with aclosing(_merged(self.model.client, self.requests)) as events:
                try:
                    async for index, event in events:
                        if event.finish_reason is not None:
                            record.finish_reason = event.finish_reason.value
                            record.error = event.error
                            self._check_end(event)
                        if record.first_token_s is None and event.token_ids:
                            record.first_token_s = time.monotonic() - began_s
                        yield index, event
                except OverloadedError:
                    self.state.metrics.observe_rejection("queue", model_name=self.model.name)
                    raise

    async def collect(self, tally: Tally) -> list[Collected]:
        """Return the choices of the whole answer, counted by `tally`."""
        choices = [Collected() for _ in range(self.n * len(self.requests))]
        async with aclosing(self.events()) as events:
            async for index, event in events:
                tally.add(event)
                choices[index].add(event)
        # It came with the first choice of each request, and is that of all.
        for index, choice in enumerate(choices):
            choice.prompt_logprobs = choices[index - index % self.n].prompt_logprobs
        self.finish(tally)
        return choices

    def finish(self, tally: Tally) -> None:
        """Tell the log what came of it."""
        self.record.prompt_tokens = tally.prompt_tokens
        self.record.completion_tokens = tally.completion_tokens

    def _check_end(self, event: TokenEvent) -> None:
        """Raise when a choice did not end by itself; only the log gets the engine's words."""
        if event.finish_reason is FinishReason.ABORT:
            raise ShuttingDownError
        if event.finish_reason is FinishReason.ERROR:
            if not self.model.client.is_alive:
                raise EngineDeadError(event.error or "the engine has stopped")
            raise GenerationError(event.error or "the engine gave no reason")


async def _merged(
    client: EngineClient, requests: Sequence[Request]
) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """Yield the events of requests as they come."""
    if len(requests) == 1:
        async with aclosing(client.generate(requests[0])) as events:
            async for event in events:
                yield event.index, event
        return
    turns = asyncio.Semaphore(MAX_AT_ONCE)
    # Of no more than one event each: the client merges what is not taken.
    queue: asyncio.Queue[tuple[int, TokenEvent] | Exception] = asyncio.Queue(len(requests))

    async def feed(offset: int, request: Request) -> None:
        try:
            async with turns, aclosing(client.generate(request)) as events:
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
