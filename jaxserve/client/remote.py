"""Client of an engine in another process, over a ZeroMQ IPC socket."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import zmq
import zmq.asyncio
from tokenizers import Tokenizer

from jaxserve.api.request import Request, TokenEvent
from jaxserve.client import DRAIN_RETRY_S, EngineClient
from jaxserve.client.streams import Streams
from jaxserve.client.wire import MAX_MESSAGE_BYTES, MAX_UNREAD, decode_reply, encode_command
from jaxserve.engine.loop import Command
from jaxserve.errors import INTERNAL_ERROR, EngineDeadError, OverloadedError

logger = logging.getLogger(__name__)

POLL_S = 0.02
# How long to wait for the engine to end aborted requests. It must leave time to answer the clients
# before the supervisor kills this process (supervisor.LAST_WORDS_S).
ABORT_TIMEOUT_S = 2.0


class RemoteClient(EngineClient):
    """Client of one engine at a time, on one event loop.

    The supervisor, the engine's parent process, reports when an engine is ready or has ended; the
    caller then calls `connect` or `disconnect`.
    """

    def __init__(self) -> None:
        self._link: _Link | None = None
        self._reason = "the engine has not started yet"
        self._is_draining = False
        self._is_silent = False

    def connect(self, address: str, *, client: int, tokenizer: Tokenizer | None) -> None:
        """Connect to the engine at `address` with the client number `client`."""
        assert self._link is None, "one engine at a time"
        self._is_silent = False
        self._link = _Link(address, client, tokenizer)

    def set_silent(self, is_silent: bool) -> None:
        """Set whether the engine is unresponsive."""
        self._is_silent = is_silent

    def disconnect(self, reason: str) -> int:
        """End running requests with an error, and refuse requests until connected again.

        Return the number of requests that were ended.
        """
        self._reason = reason
        link, self._link = self._link, None
        if link is None:
            return 0
        num_requests = len(link.streams.request_ids)
        link.close(reason)
        return num_requests

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """See EngineClient."""
        if self._link is None:
            raise EngineDeadError(self._reason)
        if self._is_draining:
            raise OverloadedError("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
        return self._link.streams.generate(request)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        if self._link is not None:
            self._link.streams.abort(request_id)

    @property
    def is_alive(self) -> bool:
        """See EngineClient."""
        return self._link is not None

    @property
    def is_responding(self) -> bool:
        """See EngineClient."""
        return self.is_alive and not self._is_silent

    def check_health(self) -> None:
        """See EngineClient."""
        if self._link is None:
            raise EngineDeadError(self._reason)

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """See EngineClient."""
        self._is_draining = True
        await self._until_idle(drain_timeout_s)
        if self._link is not None:
            for request_id in self._link.streams.request_ids:
                self._link.streams.abort(request_id)
            await self._until_idle(ABORT_TIMEOUT_S)
        self.disconnect("the engine was shut down")

    async def _until_idle(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self._link is not None and self._link.streams.is_busy:
            if time.monotonic() >= deadline_s:
                return
            await asyncio.sleep(POLL_S)


class _Link:
    """A connection to one engine."""

    def __init__(self, address: str, client: int, tokenizer: Tokenizer | None) -> None:
        self.streams = Streams(tokenizer, self._send)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"%d" % client)
        self._socket.setsockopt(zmq.LINGER, 0)
        # No limit: a command must be neither lost nor delayed, and admission bounds their number.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, MAX_UNREAD)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.connect(address)
        self._reader = asyncio.create_task(self._read())

    def close(self, reason: str) -> None:
        """Fail all streams, and close the connection."""
        self._reader.cancel()
        self.streams.fail(reason)
        self._socket.close()
        self._context.term()

    def _send(self, command: Command) -> None:
        if not self._socket.closed:
            sent = self._socket.send_multipart(encode_command(command), zmq.NOBLOCK)
            assert isinstance(sent, asyncio.Future)
            assert sent.done(), "there is always room"

    async def _read(self) -> None:
        while True:
            frame = await self._socket.recv()
            try:
                self.streams.receive(decode_reply(frame))
            except Exception:
                # Unknown requests have lost tokens, so fail all rather than let one wait forever.
                logger.exception("malformed message from the engine; all its requests fail")
                for request_id in self.streams.request_ids:
                    self.streams.abort(request_id)
                self.streams.fail(INTERNAL_ERROR)
