"""Server-sent events."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jaxserve.errors import JaxserveError
from jaxserve.server.errors import describe, encode, error_response

DONE = b"data: [DONE]\n\n"
# A comment, which clients ignore. It keeps proxies from closing the connection of a queued request.
PING = b": waiting\n\n"
PING_INTERVAL_S = 15.0
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_encoder = msgspec.json.Encoder()


def event(chunk: msgspec.Struct) -> bytes:
    """Encode a chunk as an event."""
    return b"data: %b\n\n" % _encoder.encode(chunk)


def tagged_event(chunk: msgspec.Struct) -> bytes:
    """Encode a chunk as an event named after its type, the tag of the Struct."""
    tag = str(chunk.__struct_config__.tag)
    return b"event: %b\ndata: %b\n\n" % (tag.encode(), _encoder.encode(chunk))


class EventStream(StreamingResponse):
    """Response that streams the events of an async generator.

    The status is sent with the first event or ping. An error before it gets a normal error
    response; an error after it becomes the last event, without `[DONE]`. The generator is always
    closed, also if the client disconnects, and must release its resources in `finally`. error_name:
    name of the error event, if events have names.
    """

    def __init__(self, events: AsyncGenerator[bytes], *, error_name: str | None = None) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._events = events
        self._error_name = error_name
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until its end, or until the client disconnects."""
        self._scope, self._receive = scope, receive
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the events, preceded by the headers."""
        async with aclosing(self._events) as events:
            try:
                piece = await self._first(events, send)
                while piece is not None:
                    await self._send(piece, send)
                    piece = await anext(events, None)
            except JaxserveError as error:
                if not self._has_started:
                    await error_response(error, self._scope)(self._scope, self._receive, send)
                    return
                await self._send(self._error_event(error), send)
            except Exception as error:
                if self._has_started:
                    await self._send(self._error_event(error), send)
                raise
            await self._send(b"", send, more_body=False)

    async def _first(self, events: AsyncGenerator[bytes], send: Send) -> bytes | None:
        """Return the first event, sending pings until it arrives."""
        pings = asyncio.create_task(self._ping(send))
        try:
            return await anext(events, None)
        finally:
            pings.cancel()
            await asyncio.wait({pings})

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            await self._send(PING, send)

    async def _send(self, piece: bytes, send: Send, *, more_body: bool = True) -> None:
        if not self._has_started:
            self._has_started = True
            start: dict[str, Any] = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": piece, "more_body": more_body})

    def _error_event(self, error: Exception) -> bytes:
        status, body, _ = describe(error)
        name = b"" if self._error_name is None else b"event: %b\n" % self._error_name.encode()
        return name + b"data: %b\n\n" % encode(status, body, path=self._scope["path"])
