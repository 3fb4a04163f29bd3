"""How servers talk to an engine: streams of events per request, over a thread or a process.

`EngineClient` is the contract; `InProcessClient` runs an engine on a thread of its own. Callers
that have no event loop (offline generation) use `Engine.add` and `Engine.step` directly.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from jaxserve.engine.engine import Engine
from jaxserve.errors import EngineDeadError, InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.metrics import StepStats
from jaxserve.request import FinishReason, Request, TokenEvent

logger = logging.getLogger(__name__)

# How often an idle engine thread says that it is alive.
HEARTBEAT_S = 0.5
# A step takes milliseconds and the compilation of a forgotten shape a minute or two; what takes
# longer has hung.
HANG_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
# What a client refused during shutdown is told to wait: about as long as a replacement takes.
DRAIN_RETRY_S = 10.0


class EngineClient(Protocol):
    """An engine, wherever it runs. All methods are called from event loops."""

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """Run a request and yield its events; the last one has `request_finished`.

        A reader slower than the engine gets several tokens of a choice in one event. Closing the
        generator before its end aborts the request. Raises, before the first event,
        InvalidRequestError, OverloadedError or EngineDeadError. If the engine dies later on, every
        choice ends with FinishReason.ERROR.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Let a request end with FinishReason.ABORT; no-op once it has finished."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served: the engine has not failed, stopped or hung."""
        ...

    def check_health(self) -> None:
        """Raise EngineDeadError, saying why, unless `is_alive`."""
        ...

    def stats(self) -> StepStats:
        """Gauges after the last step; counts since the engine was made."""
        ...

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """Refuse new requests, let those in flight finish for a while, abort the rest, stop."""
        ...


class _Stream:
    """The events of one request on their way from the engine's thread to an event loop.

    It buffers at most one event per choice: what the reader has not taken yet is merged, so that
    a slow reader costs no more memory than its own answer.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        # Engine thread only: the choices whose last event is still to come.
        self.open_choices = set(range(request.params.n))
        # Event loop only.
        self._buffered: dict[int, TokenEvent] = {}
        self._error: JaxserveError | None = None
        self._ready = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Buffer an event; on the event loop."""
        earlier = self._buffered.pop(event.index, None)
        # Popped and put last: the event that ends the request must stay the last one.
        self._buffered[event.index] = event if earlier is None else _merge(earlier, event)
        self._ready.set()

    def fail(self, error: JaxserveError) -> None:
        """Make `get` raise; on the event loop."""
        self._error = error
        self._ready.set()

    def last_events(self, error: str) -> list[TokenEvent]:
        """Make the events that end what has not ended; on the engine's thread."""
        return [
            TokenEvent(
                request_id=self.request.id,
                index=index,
                num_prompt_tokens=len(self.request.prompt_ids),
                finish_reason=FinishReason.ERROR,
                error=error,
                request_finished=len(self.open_choices) == position + 1,
            )
            for position, index in enumerate(sorted(self.open_choices))
        ]

    async def get(self) -> list[TokenEvent]:
        """Wait for events and take them all."""
        await self._ready.wait()
        self._ready.clear()
        if self._error is not None:
            raise self._error
        events = list(self._buffered.values())
        self._buffered.clear()
        return events


class InProcessClient(EngineClient):
    """Runs an engine on one daemon thread, from construction until `shutdown` or its death.

    The engine belongs to that thread alone; calls reach it through an inbox. Events go to each
    event loop in one call per step.
    """

    def __init__(self, engine: Engine, *, hang_timeout_s: float = HANG_TIMEOUT_S) -> None:
        self._engine = engine
        self._hang_timeout_s = hang_timeout_s
        # Guards all up to the next blank line; notified of every change to it.
        self._changed = threading.Condition()
        self._streams: dict[str, _Stream] = {}
        self._inbox: list[Callable[[], None]] = []
        self._is_draining = False
        self._is_stopping = False
        self._dead_reason: str | None = None

        # Written by the engine's thread alone.
        self._stats = engine.stats()
        self._heartbeat_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """See EngineClient."""
        stream = _Stream(request)
        self._open(stream)
        is_finished = False
        try:
            while not is_finished:
                for event in await stream.get():
                    is_finished = is_finished or event.request_finished
                    yield event
        finally:
            with self._changed:
                # Not if it is complete or was refused: its id may be another request's by now.
                if self._streams.get(request.id) is stream:
                    self._ask(partial(self._engine.abort, request.id))

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        with self._changed:
            if request_id in self._streams:
                self._ask(partial(self._engine.abort, request_id))

    @property
    def is_alive(self) -> bool:
        """See EngineClient."""
        return self._why_dead() is None

    def check_health(self) -> None:
        """See EngineClient."""
        reason = self._why_dead()
        if reason is not None:
            raise EngineDeadError(reason)

    def stats(self) -> StepStats:
        """See EngineClient."""
        return self._stats

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """See EngineClient."""
        with self._changed:
            self._is_draining = True
        await asyncio.to_thread(self._stop, drain_timeout_s)

    # On the callers' threads.

    def _open(self, stream: _Stream) -> None:
        """Register a stream and ask for its request to be added."""
        request = stream.request
        with self._changed:
            if self._dead_reason is not None:
                raise EngineDeadError(self._dead_reason)
            if self._is_draining:
                raise OverloadedError("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
            if request.id in self._streams:
                raise InvalidRequestError(
                    f"request_id {request.id!r} is already in use", param="request_id"
                )
            self._streams[request.id] = stream
            self._ask(partial(self._add, stream))

    def _ask(self, command: Callable[[], None]) -> None:
        """Put a command into the inbox; with _changed held."""
        self._inbox.append(command)
        self._changed.notify_all()

    def _why_dead(self) -> str | None:
        if self._dead_reason is not None:
            return self._dead_reason
        silent_s = time.monotonic() - self._heartbeat_s
        if silent_s > self._hang_timeout_s:
            return f"the engine has not finished a step for {silent_s:.0f} s"
        return None

    def _stop(self, drain_timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._streams, timeout=drain_timeout_s)
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("the engine's thread did not stop within %g s", STOP_TIMEOUT_S)

    # On the engine's thread.

    def _run(self) -> None:
        try:
            while self._obey():
                self._deliver(self._engine.step())
                self._stats = self._engine.stats()
            for stream in self._open_streams():
                self._engine.abort(stream.request.id)
            while self._engine.has_work:
                self._deliver(self._engine.step())
            self._die("the engine was shut down")
        except Exception:
            logger.exception("the engine has failed")
            self._die("the engine has failed; its log says why")

    def _obey(self) -> bool:
        """Do what the inbox says, waiting for work if there is none; False once to stop."""
        with self._changed:
            self._heartbeat_s = time.monotonic()
            while not (self._inbox or self._is_stopping or self._engine.has_work):
                self._changed.wait(HEARTBEAT_S)
                self._heartbeat_s = time.monotonic()
            inbox, self._inbox = self._inbox, []
            is_stopping = self._is_stopping
        for command in inbox:
            command()
        return not is_stopping

    def _add(self, stream: _Stream) -> None:
        try:
            self._engine.add(stream.request)
        except JaxserveError as error:
            self._refuse(stream, error)
        except Exception:
            # What a request contains must not stop the others.
            logger.exception("request %r could not be added", stream.request.id)
            self._refuse(stream, JaxserveError("an internal error has ended this request"))

    def _refuse(self, stream: _Stream, error: JaxserveError) -> None:
        self._close([stream])
        self._send({stream.loop: [partial(stream.fail, error)]})

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Pass events on to their streams, and forget the streams that are complete."""
        calls: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        complete: list[_Stream] = []
        for event in events:
            stream = self._streams[event.request_id]
            calls.setdefault(stream.loop, []).append(partial(stream.put, event))
            if event.finish_reason is not None:
                stream.open_choices.discard(event.index)
            if event.request_finished:
                complete.append(stream)
        self._close(complete)
        self._send(calls)

    def _send(self, calls: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]]) -> None:
        for loop, functions in calls.items():
            try:
                loop.call_soon_threadsafe(_call_all, functions)
            except RuntimeError:  # the loop was closed under its readers
                for stream in self._open_streams():
                    if stream.loop is loop:
                        self.abort(stream.request.id)

    def _close(self, streams: list[_Stream]) -> None:
        if streams:
            with self._changed:
                for stream in streams:
                    del self._streams[stream.request.id]
                self._changed.notify_all()

    def _open_streams(self) -> list[_Stream]:
        with self._changed:
            return list(self._streams.values())

    def _die(self, reason: str) -> None:
        """End every stream, by an error in every choice that has not ended, and take no more."""
        with self._changed:
            self._dead_reason = reason
            self._inbox.clear()
        try:
            self._deliver(self._engine.fail(reason))
        except Exception:
            logger.exception("the engine could not end its requests")
        # What the engine does not know of: requests still in the inbox, events lost in a fault.
        for stream in self._open_streams():
            self._deliver(stream.last_events(reason))


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _merge(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    """Return one event that says what two of the same choice say one after the other."""
    has_prompt = first.prompt_logprobs is not None
    return replace(
        second,
        token_ids=first.token_ids + second.token_ids,
        text=first.text + second.text,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs if has_prompt else second.prompt_logprobs,
        num_cached_tokens=max(first.num_cached_tokens, second.num_cached_tokens),
    )
