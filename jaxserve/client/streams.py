"""The streams of one client of an engine, on one event loop."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from msgspec.structs import replace
from tokenizers import Tokenizer

from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.engine.loop import Abort, Add, Command, Finish, Refusal, Reply
from jaxserve.errors import INTERNAL_ERROR, JaxserveError
from jaxserve.frontend.output_processor import OutputProcessor

logger = logging.getLogger(__name__)


class Stream:
    """Buffer of the events of one request.

    Unread events of a choice are merged into one, so a slow reader costs no more memory than its
    answer.
    """

    def __init__(self) -> None:
        self._buffered: dict[int, list[TokenEvent]] = {}
        self._error: JaxserveError | None = None
        self._ready = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Buffer an event."""
        events = self._buffered.pop(event.index, [])
        events.append(event)
        # Reinserted at the end, so that the event that ends the request stays the last one.
        self._buffered[event.index] = events
        self._ready.set()

    def fail(self, error: JaxserveError) -> None:
        """Make `get` raise."""
        self._error = error
        self._ready.set()

    async def get(self) -> list[TokenEvent]:
        """Wait for events, and return all of them, merged per choice."""
        await self._ready.wait()
        self._ready.clear()
        if self._error is not None:
            raise self._error
        events = [merge(pieces) for pieces in self._buffered.values()]
        self._buffered.clear()
        return events


class Streams:
    """The streams of all requests of a client, with detokenization. For one event loop.

    send: sends a command to the engine without blocking. The owner passes the engine's replies to
    `receive`, and calls `fail` when the engine has ended.
    """

    def __init__(self, tokenizer: Tokenizer | None, send: Callable[[Command], None]) -> None:
        self._processor = OutputProcessor(tokenizer, self)
        self._send = send
        self._streams: dict[str, Stream] = {}

    @property
    def is_busy(self) -> bool:
        """Whether any request is running."""
        return bool(self._streams)

    @property
    def request_ids(self) -> list[str]:
        """Ids of the running requests."""
        return list(self._streams)

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """See EngineClient."""
        stream = self._open(request)
        is_finished = False
        try:
            while not is_finished:
                for event in await stream.get():
                    is_finished = is_finished or event.request_finished
                    yield event
        finally:
            # Not if it finished or was refused: another request may use its id by now.
            if self._streams.get(request.id) is stream:
                self._forget(request.id)
                self.abort(request.id)

    def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        self._send(Abort(request_id))

    def finish(self, request_id: str, index: int, *, num_tokens: int, reason: FinishReason) -> None:
        """See Engine.finish."""
        self._send(Finish(request_id, index, num_tokens, reason))

    def receive(self, reply: Reply) -> None:
        """Process a reply of the engine."""
        if isinstance(reply, Refusal):
            stream = self._streams.get(reply.request_id)
            if stream is not None:
                self._forget(reply.request_id)
                stream.fail(reply.error())
            return
        self._put(self._processor.feed(reply))

    def fail(self, reason: str) -> None:
        """End every stream, with an error for each unfinished choice."""
        for request_id in self.request_ids:
            self._put(self._processor.fail(request_id, reason))

    def _open(self, request: Request) -> Stream:
        try:
            first_key = self._processor.open(request)
        except JaxserveError:
            raise
        except Exception as error:
            logger.exception("request %r could not be added", request.id)
            raise JaxserveError(INTERNAL_ERROR) from error
        stream = self._streams[request.id] = Stream()
        self._send(Add(request, first_key))
        return stream

    def _put(self, events: list[TokenEvent]) -> None:
        for event in events:
            self._streams[event.request_id].put(event)
            if event.request_finished:
                del self._streams[event.request_id]

    def _forget(self, request_id: str) -> None:
        del self._streams[request_id]
        self._processor.close(request_id)


def merge(events: list[TokenEvent]) -> TokenEvent:
    """Merge consecutive events of one choice into one event."""
    last = events[-1]
    if len(events) == 1:
        return last
    prompt_logprobs = [event.prompt_logprobs for event in events]
    return replace(
        last,
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        text="".join(event.text for event in events),
        logprobs=tuple(logprobs for event in events for logprobs in event.logprobs),
        prompt_logprobs=next((found for found in prompt_logprobs if found is not None), None),
    )
