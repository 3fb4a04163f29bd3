"""Building blocks of attacks, for abuse.py: target, attack, and raw connections.

An attack is a coroutine that gets a `Target`, misbehaves for up to `target.seconds`, and returns
complaints: answers that should have been refused. abuse.py runs it in its own process and monitors
the server's probes and its other clients. To add an attack, write a coroutine and add it to
`ATTACKS` in abuse_attacks.py.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
# A chat of one token beside costly ones.
PLAIN_CHAT_S = 5.0

type Run = Callable[["Target"], Awaitable[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under attack. seconds: how long the attack should last."""

    host: str
    port: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A row of the battery.

    flags: further flags of the server that it needs; attacks with the same flags and max_files
    share a server. max_files: soft and hard limit of open files of that server's processes.
    """

    name: str
    about: str
    run: Run
    flags: tuple[str, ...] = ()
    max_files: int | None = None


class Connection:
    """A client that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, target: Target, *, tls: ssl.SSLContext | None = None) -> "Connection":
        """Connect; raises OSError or TimeoutError."""
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(target.host, target.port, ssl=tls), CONNECT_TIMEOUT_S
        )
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        """Send bytes; raises OSError once the server has closed the connection."""
        self._writer.write(data)
        await self._writer.drain()

    async def rest(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes | None:
        """Return all that comes until the server closes; None if it does not close in time."""
        data = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while piece := await self._reader.read(65536):
                    data += piece
        except TimeoutError:
            return None
        except ConnectionError:
            pass
        return bytes(data)

    async def line(self) -> bytes:
        """Return the next line that the server sends."""
        return await self._reader.readline()

    def close(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


def post(path: str, body: dict[str, Any], *, headers: Iterable[str] = ()) -> bytes:
    """Return a whole request with a JSON body."""
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def post_head(path: str, num_bytes: int) -> bytes:
    """Return the headers of a request with a JSON body of so many bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {num_bytes}\r\n\r\n"
    ).encode()


async def until_over(target: Target, clients: Iterable[Awaitable[None]]) -> None:
    """Run clients side by side for as long as the attack lasts; their broken connections end."""
    try:
        async with asyncio.timeout(target.seconds):
            await asyncio.gather(*clients, return_exceptions=True)
    except TimeoutError:
        pass
