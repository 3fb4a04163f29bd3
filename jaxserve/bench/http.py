"""HTTP/1.1 for a load generator: little work between the socket and a timestamp.

General clients spend longer on a streamed chunk (docs/benchmarks.md has the figures), and on a
machine that the server shares, that is time taken from the server.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import h11

from jaxserve.errors import ConfigError

READ_BYTES = 1 << 16


class Response:
    """An answer whose head is there and whose body comes as it is read."""

    def __init__(self, connection: "Connection", head: h11.Response) -> None:
        self.status = head.status_code
        self._connection = connection

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives."""
        while isinstance(event := await self._connection.next_event(), h11.Data):
            yield bytes(event.data)

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


class Connection:
    """A connection that carries one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last one is over and the server still there."""
        return self._protocol.our_state is h11.IDLE and not self._reader.at_eof()

    async def send(self, request: h11.Request, body: bytes) -> None:
        """Send a request."""
        parts = [self._protocol.send(request)]
        if body:
            parts.append(self._protocol.send(h11.Data(data=body)))
        parts.append(self._protocol.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in parts if part))
        await self._writer.drain()

    async def next_event(self) -> h11.Event:
        """Return what the server says next. Raises ConnectionError when it has left."""
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(READ_BYTES))
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the server closed the connection")
        return event

    def finish(self) -> None:
        """Make ready for the next request, if this one is over on both sides."""
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.close()


class HttpClient:
    """Connections to one server, kept and used again as they become free.

    base_url: http or https, with a path or without. verify: whether a certificate must be valid.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None, verify: bool = True
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or url.hostname is None:
            raise ConfigError(f"base_url must be like http://127.0.0.1:8000, got {base_url!r}")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._path = url.path.rstrip("/")
        self._ssl: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._ssl = ssl.create_default_context()
            self._ssl.check_hostname = verify
            self._ssl.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        self._headers = [("Host", url.netloc.rpartition("@")[2]), *(headers or {}).items()]
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Response]:
        """Send a request; the answer is good inside the block.

        Raises OSError for a connection that fails, and h11.RemoteProtocolError for an answer that
        is no HTTP.
        """
        connection = await self._connection()
        try:
            fields = [
                *self._headers,
                *(headers or {}).items(),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
            ]
            request = h11.Request(method=method, target=self._path + path, headers=fields)
            await connection.send(request, body)
            # What comes before the answer itself, 100 Continue say, is not of interest.
            while not isinstance(event := await connection.next_event(), h11.Response):
                pass
            yield Response(connection, event)
            connection.finish()
        finally:
            # Not reusable either when the block has left the answer unread.
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        return Connection(*await asyncio.open_connection(self._host, self._port, ssl=self._ssl))
