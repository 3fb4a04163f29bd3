"""HTTP/1.1 client for load generation, with little work between socket and timestamp.

General clients take longer per streamed chunk (docs/benchmarks.md has figures), and on a shared
machine this slows down the server.
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
    """A response whose headers have arrived and whose body can be read."""

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
    """A keep-alive connection for consecutive requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent: the last one is complete and the connection open."""
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
        """Return the next event. Raises ConnectionError if the server has closed the connection."""
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(READ_BYTES))
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the server closed the connection")
        return event

    def finish(self) -> None:
        """Prepare for the next request if both sides have completed this one."""
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.close()


class HttpClient:
    """Connection pool for one server.

    base_url: http or https URL, with or without a path. verify: check the TLS certificate.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None, verify: bool = True
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or url.hostname is None:
            raise ConfigError(
                f"base_url must be a URL such as http://127.0.0.1:8000, got {base_url!r}"
            )
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
        """Send a request. The response can be read within the block.

        Raises OSError if the connection fails, and h11.RemoteProtocolError if the response is not
        HTTP.
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
            # Skip informational responses such as 100 Continue.
            while not isinstance(event := await connection.next_event(), h11.Response):
                pass
            yield Response(connection, event)
            connection.finish()
        finally:
            # Also not reusable if the block did not read the whole response.
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close idle connections."""
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
