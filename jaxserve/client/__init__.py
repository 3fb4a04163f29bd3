"""Engine clients: a stream of events per request, over a thread or a process.

`EngineClient` is the contract; `InProcessClient` runs an engine on a thread of its own,
`RemoteClient` talks to one in another process. Callers that have no event loop (offline
generation) use `TextEngine` directly.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from jaxserve.api.request import Request, TokenEvent

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

    @property
    def is_responding(self) -> bool:
        """Whether the engine answers now; False also while it only pauses, unlike `is_alive`."""
        ...

    def check_health(self) -> None:
        """Raise EngineDeadError, saying why, unless `is_alive`."""
        ...

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """Refuse new requests, let those in flight finish for a while, abort the rest, stop."""
        ...
