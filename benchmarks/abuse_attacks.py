"""Attacks on a server for abuse.py: what hostile or broken clients do, and what must come of it.

An attack is a coroutine that gets a `Target`, misbehaves for up to `target.seconds`, and returns
complaints: answers that it got and should not have. abuse.py runs it in a process of its own and
watches the server's probes and its other clients meanwhile. To add an attack, write its coroutine
and add a row to `ATTACKS`.
"""

import asyncio
import json
import ssl
import time
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


async def exhaust_connections(target: Target) -> list[str]:
    """Open idle connections, far more than the server takes, again and again."""
    num_open = 0

    async def hold() -> None:
        nonlocal num_open
        while True:
            try:
                connection = await Connection.to(target)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.1)
                continue
            num_open += 1
            await connection.rest(target.seconds)
            connection.close()

    await until_over(target, [hold() for _ in range(256)])
    return [] if num_open >= 256 else [f"only {num_open} connections could be opened"]


async def drip_headers(target: Target) -> list[str]:
    """Send headers a byte at a time, on many connections (slowloris)."""

    async def drip() -> None:
        while True:
            try:
                connection = await Connection.to(target)
                await connection.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
                for _ in range(1000):
                    await connection.send(b"x: y\r\n")
                    await asyncio.sleep(0.5)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.1)

    await until_over(target, [drip() for _ in range(256)])
    return []


def wide(path: str, field: str, entry: bytes, *, num_bytes: int = 15 * 2**20) -> bytes:
    """Return a request whose body is one field with a list of as many entries as fit."""
    body = b'{"%b":[%b%b]}' % (field.encode(), (entry + b",") * (num_bytes // len(entry)), entry)
    return post_head(path, len(body)) + body


async def expect(
    target: Target, request: bytes, statuses: Iterable[int], *, may_cut: bool = False
) -> list[str]:
    """Send a request; complain unless it is answered with one of the statuses.

    may_cut: or refused before all of it was sent, which can cost the answer.
    """
    connection = await Connection.to(target)
    try:
        await connection.send(request)
        line = await asyncio.wait_for(connection.line(), 6 * ANSWER_TIMEOUT_S)
    except ConnectionError as error:
        return [] if may_cut else [f"no answer: {error!r}"]
    except (OSError, TimeoutError) as error:
        return [f"no answer: {error!r}"]
    finally:
        connection.close()
    status = line.split()[1].decode() if line else "nothing"
    return [] if status in {str(each) for each in statuses} else [f"answered {status}"]


async def send_wide_bodies(target: Target) -> list[str]:
    """Send 20 bodies of 15 MB at once, wide in every way that a body can be."""
    requests = [
        wide("/v1/completions", "prompt", b"[]"),
        wide("/v1/completions", "prompt", b"1"),
        wide("/v1/completions", "allowed_token_ids", b"1"),
        wide("/v1/completions", "stop", b'""'),
        wide("/v1/chat/completions", "messages", b"{}"),
        wide("/v1/messages", "messages", b'{"role":"user","content":[]}'),
        wide("/v1/responses", "input", b'{"role":"user","content":[]}'),
        wide("/v1/embeddings", "input", b"[1]"),
        wide("/tokenize", "prompt", b'{"a":1}'),
        wide("/detokenize", "tokens", b"1234567"),
    ]
    # 503: they are more than all bodies together may be.
    answers = [expect(target, request, [400, 503], may_cut=True) for request in 2 * requests]
    return [complaint for complaints in await asyncio.gather(*answers) for complaint in complaints]


async def send_one_line_batch(target: Target) -> list[str]:
    """Run a batch whose file is one line of 50 MB."""
    border = "border"
    parts = (
        f'--{border}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{border}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    ).encode()
    line = b'{"custom_id":"a","body":{"prompt":[%b1]}}' % (b"[]," * (50 * 2**20 // 3))
    form = parts + line + f"\r\n--{border}--\r\n".encode()
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: multipart/form-data; boundary={border}\r\n"
        f"content-length: {len(form)}\r\n\r\n"
    )
    connection = await Connection.to(target)
    await connection.send(head.encode() + form)
    answer = await connection.rest() or b""
    connection.close()
    file_id = json.loads(answer.partition(b"\r\n\r\n")[2] or b"{}").get("id")
    if file_id is None:
        return [f"the file was not taken: {answer[:200]!r}"]
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    complaints = await expect(target, post("/v1/batches", body), [200])
    await asyncio.sleep(target.seconds)
    return complaints


async def send_grammars(target: Target, forms: Iterable[dict[str, Any]]) -> list[str]:
    """Ask for answers of forms that are costly to follow, and for a plain chat all the while."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    complaints = []

    async def ask_plainly() -> None:
        while True:
            began_s = time.monotonic()
            complaints.extend(await expect(target, post("/v1/chat/completions", chat), [200]))
            if time.monotonic() - began_s > PLAIN_CHAT_S:
                complaints.append(f"a plain chat took {time.monotonic() - began_s:.1f} s")
            await asyncio.sleep(0.1)

    plain = asyncio.create_task(ask_plainly())
    requests = [post("/v1/chat/completions", {**chat, "structured_outputs": f}) for f in forms]
    answers = [expect(target, request, [200, 400, 503]) for request in requests]
    for found in await asyncio.gather(*answers):
        complaints += found
    plain.cancel()
    return complaints


async def send_long_regexes(target: Target) -> list[str]:
    """Ask for distinct expressions that repeat a million times."""
    return await send_grammars(
        target, [{"regex": f"{letter}{{1000000}}"} for letter in "abcdefghijklmnopqrstuvwxyz"]
    )


async def send_long_choices(target: Target) -> list[str]:
    """Ask twelve times for one of 25,000 texts."""
    return await send_grammars(
        target,
        [{"choice": [f"{form:02}-{i:07}" for i in range(25_000)]} for form in range(12)],
    )


async def send_many_choices(target: Target) -> list[str]:
    """Ask eight times for 128 answers, and for plain chats all the while."""
    many = {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "n": 128,
        "max_tokens": 32,
        "ignore_eos": True,
    }
    greedy = [asyncio.create_task(Connection.to(target)) for _ in range(8)]
    connections = await asyncio.gather(*greedy)
    for connection in connections:
        await connection.send(post("/v1/chat/completions", many))
    complaints = await send_grammars(target, [{"json_object": True}])
    for connection in connections:
        connection.close()
    return complaints


async def drip_bodies(target: Target) -> list[str]:
    """Send bodies a byte at a time, JSON and uploads, on many connections."""
    upload = (
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n"
        "content-type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )

    async def drip(head: bytes) -> None:
        while True:
            try:
                connection = await Connection.to(target)
                await connection.send(head)
                for _ in range(1000):
                    await connection.send(b" ")
                    await asyncio.sleep(0.5)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.1)

    heads = (post_head("/v1/chat/completions", 1_000_000), upload.encode())
    await until_over(target, [drip(heads[i % 2]) for i in range(128)])
    return []


async def hold_big_bodies(target: Target) -> list[str]:
    """Send 60 bodies of 15.5 MB but for their last byte, and hold them."""
    num_bytes = 15_500_000
    answers: list[bytes] = []

    async def hold() -> None:
        connection = await Connection.to(target)
        try:
            await connection.send(post_head("/v1/completions", num_bytes + 1))
            for _ in range(num_bytes // 62_000):
                await connection.send(b" " * 62_000)
            answers.append(await connection.rest(target.seconds) or b"held")
        except ConnectionError:
            answers.append(await connection.rest() or b"cut")
        finally:
            connection.close()

    await until_over(target, [hold() for _ in range(60)])
    wrong = {answer[:12] for answer in answers} - {b"held", b"cut", b"HTTP/1.1 503"}
    return [f"a body that was held got {answer!r}" for answer in sorted(wrong)]


async def smuggle(target: Target) -> list[str]:
    """Send requests with two lengths, followed by another request, and count the answers."""
    start = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    )
    encoded = b"transfer-encoding: chunked\r\n"
    hidden = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    requests = (
        start + b"content-length: 4\r\n" + encoded + b"\r\n0\r\n\r\n",
        start + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}  ",
        start + b"x: y\r\n z\r\ncontent-length: 2\r\n\r\n{}",
        start + encoded + b"\r\n+2\r\n{}\r\n0\r\n\r\n",
        start + encoded + b"\r\n" + b"1\r\n \r\n" * 40_000,
        start.replace(b"HTTP/1.1", b"HTTP/1.0") + encoded + b"\r\n0\r\n\r\n",
        hidden.replace(b"/v1/models", b"http://localhost/v1/models"),
        hidden.replace(b"host: localhost", b"x: y"),
    )
    wrong: set[str] = set()

    async def repeat(request: bytes) -> None:
        while True:
            connection = await Connection.to(target)
            try:
                await connection.send(request + hidden)
                answer = await connection.rest()
            except ConnectionError:
                continue
            finally:
                connection.close()
            if answer is None:
                wrong.add(f"the connection stays open after {request[:80]!r}")
            elif answer.count(b"HTTP/1.1 ") > 1 or answer[:12] not in {b"", b"HTTP/1.1 400"}:
                wrong.add(f"{request[:80]!r} was answered by {answer[:80]!r}")
            await asyncio.sleep(0.01)

    await until_over(target, [repeat(request) for request in requests])
    return sorted(wrong)


async def rebind(target: Target) -> list[str]:
    """Ask as a page does whose name has become 127.0.0.1, and as a stranger's page."""
    rebound = "host: evil.example\r\n"
    foreign = "host: localhost\r\norigin: http://evil.example\r\n"
    requests = [
        f"{method} {path} HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n"
        for method, headers in (("GET", rebound), ("POST", rebound), ("POST", foreign))
        for path in ("/v1/models", "/v1/files", "/v1/responses/resp_x/cancel", "/health")
    ]
    wrong = []
    for request in requests:
        connection = await Connection.to(target)
        await connection.send(request.encode())
        answer = await connection.rest()
        connection.close()
        if answer is None or not answer.startswith(b"HTTP/1.1 403"):
            wrong.append(f"{request[:60]!r} was answered by {(answer or b'')[:60]!r}")
    return wrong


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="wide bodies",
        about="20 bodies of 15 MB at once: millions of prompts, messages, tokens, strings",
        run=send_wide_bodies,
    ),
    Attack(
        name="one-line batch",
        about="a batch file that is one line of 50 MB",
        run=send_one_line_batch,
    ),
    Attack(
        name="long regexes",
        about="26 expressions of a million repetitions",
        run=send_long_regexes,
    ),
    Attack(
        name="long choices",
        about="12 times one of 25,000 texts",
        run=send_long_choices,
    ),
    Attack(
        name="many choices",
        about="8 times 128 answers to one request",
        run=send_many_choices,
    ),
    Attack(
        name="connections",
        about="256 idle connections where 64 are allowed",
        run=exhaust_connections,
        flags=("--max-connections", "64"),
    ),
    Attack(
        name="slow headers",
        about="256 clients that send headers a line at a time",
        run=drip_headers,
    ),
    Attack(
        name="slow bodies",
        about="128 clients that send JSON and files a byte at a time",
        run=drip_bodies,
    ),
    Attack(
        name="big bodies held",
        about="60 bodies of 15.5 MB that lack their last byte",
        run=hold_big_bodies,
    ),
    Attack(
        name="smuggling",
        about="requests with two meanings, each with another request behind it",
        run=smuggle,
    ),
    Attack(
        name="strange hosts",
        about="DNS rebinding and pages of other origins",
        run=rebind,
    ),
    Attack(
        name="open files",
        about="256 idle connections to a process that may open 192 files",
        run=exhaust_connections,
        max_files=192,
    ),
)
