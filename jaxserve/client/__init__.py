"""Engine clients: a stream of events per request, over a thread or a process.

`EngineClient` is the interface. `InProcessClient` runs an engine on a thread of its own;
`RemoteClient` connects to one in another process. Callers without an event loop, such as offline
generation, use `TextEngine` directly.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from jaxserve.api.request import Request, TokenEvent

STOP_TIMEOUT_S = 10.0
# Retry-After of requests refused during shutdown: about as long as a replacement takes to start.
DRAIN_RETRY_S = 10.0


class EngineClient(Protocol):
    """Interface of an engine for asynchronous callers. Call all methods from an event loop."""

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """Run a request and yield its events; the last one has `request_finished`.

        If the caller is slower than the engine, the tokens of a choice are merged into one event.
        Closing the generator early aborts the request. Raises InvalidRequestError, OverloadedError
        or EngineDeadError before the first event. If the engine dies later, every choice ends with
        FinishReason.ERROR.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request with FinishReason.ABORT. Does nothing once it has finished."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether the engine can serve requests: it has not failed, stopped or hung."""
        ...

    @property
    def is_responding(self) -> bool:
        """Whether the engine is responding now. Unlike `is_alive`, False during a pause too."""
        ...

    def check_health(self) -> None:
        """Raise EngineDeadError with the reason unless `is_alive`."""
        ...

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """Refuse new requests, wait for running ones, abort the rest, and stop.

        drain_timeout_s: how long to wait for running requests.
        """
        ...
