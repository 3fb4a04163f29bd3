"""uvicorn's HTTP/1.1 protocol with deadlines, a limit on connections, and a strict parser.

uvicorn has a deadline for idle connections only. A client that stops while sending its headers or
body would occupy a connection indefinitely. One that stops reading would also occupy the memory of
its answer.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxserve.config.server import ServerConfig
from jaxserve.observability.logging import get_logger
from jaxserve.observability.metrics import Metrics
from jaxserve.server.errors import INVALID, ErrorBody, encode
from jaxserve.server.transport.connections import Connections
from jaxserve.server.transport.strict_http import StrictConnection

log = get_logger(__name__)

# Limit on the request line and headers together, that of uvicorn.
MAX_HEADER_BYTES = 64 * 2**10
# Key in a request's ASGI state if its connection is above the limit; see `SurplusMiddleware`.
IS_SURPLUS = "is_surplus"
HEADER_END = b"\r\n\r\n"


def protocol_class(
    config: ServerConfig, connections: Connections, metrics: Metrics
) -> type[H11Protocol]:
    """Return the protocol class for uvicorn, with this server's deadlines and limits."""

    class Protocol(DeadlineProtocol):
        header_timeout_s = config.header_timeout_s
        body_timeout_s = config.body_timeout_s
        min_body_rate = config.min_body_rate
        send_timeout_s = config.send_timeout_s
        crowd = connections
        refused = staticmethod(metrics.observe_refusal)

    return Protocol


class DeadlineProtocol(H11Protocol):
    """A connection with deadlines.

    Headers must be complete within header_timeout_s of the start of the connection, or of the first
    byte of a further request. A body may pause for body_timeout_s. It must be complete after twice
    that time plus one second per min_body_rate bytes; time during which the server does not read is
    not counted. Once the buffers are full, the client must read within send_timeout_s. Otherwise
    the connection is closed, with an error response if no response has begun.

    crowd: idle connections of the process. refused: counts refusals by reason.
    """

    header_timeout_s: float
    body_timeout_s: float
    min_body_rate: int
    send_timeout_s: float
    crowd: Connections
    refused: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = self._strict = StrictConnection(MAX_HEADER_BYTES)
        self._read_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._awaits_header = False
        # Seconds spent waiting for the current body, as of _counted_s.
        self._body_s: float | None = None
        self._counted_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for headers."""
        super().connection_made(transport)
        num_open = len(self.connections)
        if num_open > self.crowd.limit and not self.crowd.make_room():
            if num_open > self.crowd.hard_limit and not self.crowd.make_room(idle_s=0.0):
                self.refused("connections")
                transport.abort()
                return
            self.app_state = {**self.app_state, IS_SURPLUS: True}
        self.crowd.wait(self)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then set the deadline for the rest."""
        if self.transport.is_closing():
            return
        if IS_SURPLUS in self.app_state and HEADER_END in data:
            # A request takes precedence over an idle connection.
            if self.crowd.make_room(idle_s=0.0, keep=self):
                self.app_state = {k: v for k, v in self.app_state.items() if k != IS_SURPLUS}
            else:
                self.refused("connections")
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._awaits_header = False
            self.crowd.leave(self)
            self._expect_body()
            return
        self._body_s = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_header()
        else:
            self._awaits_header = False
            self._cancel_read_timer()
        if self.conn.their_state is not h11.IDLE:
            self.crowd.leave(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._cancel_read_timer()
        self._cancel_send_timer()
        self.crowd.leave(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.crowd.wait(self)

    def close_idle(self) -> None:
        """Close an idle connection to make room."""
        self.refused("idle")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 with the parser's complaint, which is more precise than uvicorn's `msg`."""
        self._refuse(400, self._strict.complaint or msg, code="invalid_http")

    def pause_writing(self) -> None:
        """Start waiting for the client to read."""
        super().pause_writing()
        self._cancel_send_timer()
        self._send_timer = self.loop.call_later(self.send_timeout_s, self._on_send_timeout)

    def resume_writing(self) -> None:
        """Stop waiting for the client to read."""
        super().resume_writing()
        self._cancel_send_timer()

    def _expect_header(self) -> None:
        # Not restarted by each byte, because the deadline is for all headers.
        if not self._awaits_header:
            self._awaits_header = True
            self._restart_read_timer(self.header_timeout_s, self._on_header_timeout)

    def _expect_body(self) -> None:
        self._count_body_time()
        assert self._body_s is not None
        left_s = self._body_limit_s() - self._body_s
        self._restart_read_timer(min(left_s, self.body_timeout_s), self._on_body_timeout)

    def _body_limit_s(self) -> float:
        return 2 * self.body_timeout_s + self._strict.num_body_bytes / self.min_body_rate

    def _count_body_time(self) -> None:
        now_s = self.loop.time()
        if self._body_s is None:
            self._body_s = 0.0
        elif not self.flow.read_paused:
            self._body_s += now_s - self._counted_s
        self._counted_s = now_s

    def _on_header_timeout(self) -> None:
        if self.conn.trailing_data[0]:
            message = f"the headers must be complete within {self.header_timeout_s:g} s"
            self._refuse(408, message, code="headers_late")
        else:
            self.transport.close()

    def _on_body_timeout(self) -> None:
        if self.flow.read_paused:
            self._expect_body()
            return
        self._refuse(
            408,
            f"the body must not pause for {self.body_timeout_s:g} s, and must come at"
            f" {self.min_body_rate} bytes a second after {2 * self.body_timeout_s:g} s",
            code="body_late",
        )

    def _on_send_timeout(self) -> None:
        log.info("connection cut", reason="answer not read")
        self.refused("answer_not_read")
        # close() would wait for the buffer to be sent.
        self.transport.abort()

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Send an error response unless a response has begun, and close the connection."""
        log.info("connection cut", reason=code)
        self.refused(code)
        self._cancel_read_timer()
        path = ""
        if self.cycle is not None and not self.cycle.response_complete:
            # Discard the application's response, which would be a second one.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            path = self.cycle.scope["path"]
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = encode(status, ErrorBody(message, INVALID, code=code), path=path)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            answer = h11.Response(
                status_code=status, headers=headers, reason=HTTPStatus(status).phrase
            )
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

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
