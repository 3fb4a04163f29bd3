"""uvicorn's HTTP/1.1 protocol with deadlines, which it has none of but for idle connections.

Without them a client that stops in the middle of its headers, its body, or of reading its answer
holds a connection, and in the last case the memory of the answer, for as long as it likes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxserve.logging import get_logger
from jaxserve.server.config import ServerConfig

log = get_logger(__name__)

# uvicorn's limit for the request line and headers together.
MAX_HEADER_BYTES = 64 * 2**10


def protocol_class(config: ServerConfig) -> type[H11Protocol]:
    """Return the protocol class for uvicorn, with this server's deadlines."""

    class Protocol(DeadlineProtocol):
        header_timeout_s = config.header_timeout_s
        body_timeout_s = config.body_timeout_s
        send_timeout_s = config.send_timeout_s

    return Protocol


class DeadlineProtocol(H11Protocol):
    """One connection.

    While headers are expected, from the connection's start or the first byte of the next request,
    they must be complete within header_timeout_s. While a body is expected, some of it must come
    every body_timeout_s, not counting the time in which we do not read. What has been sent must
    begin to be taken within send_timeout_s of the buffers being full. Else the connection is cut.
    """

    header_timeout_s: float
    body_timeout_s: float
    send_timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._awaits_header = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for headers."""
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then wait for what it lacks now."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._awaits_header = False
            self._restart_read_timer(self.body_timeout_s, self._on_body_timeout)
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_header()
        else:
            self._awaits_header = False
            self._cancel_read_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._cancel_read_timer()
        self._cancel_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start waiting for the client to read."""
        super().pause_writing()
        self._cancel_send_timer()
        self._send_timer = self.loop.call_later(self.send_timeout_s, self._on_send_timeout)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._cancel_send_timer()

    def _expect_header(self) -> None:
        # Not restarted by each byte: the deadline is for all of the headers.
        if not self._awaits_header:
            self._awaits_header = True
            self._restart_read_timer(self.header_timeout_s, self._on_header_timeout)

    def _on_header_timeout(self) -> None:
        log.info("connection cut", reason="headers late")
        self.transport.close()

    def _on_body_timeout(self) -> None:
        if self.flow.read_paused:
            self._restart_read_timer(self.body_timeout_s, self._on_body_timeout)
            return
        log.info("connection cut", reason="body late")
        self.transport.close()

    def _on_send_timeout(self) -> None:
        log.info("connection cut", reason="answer not read")
        # Not close(), which would wait for the buffer to empty.
        self.transport.abort()

    def _restart_read_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._cancel_read_timer()
        self._read_timer = self.loop.call_later(delay_s, callback)

    def _cancel_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _cancel_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
