"""Attacks with connections, for abuse.py: idle, slow, ambiguous, and with foreign host names."""

import asyncio

from benchmarks.abuse_client import (
    Connection,
    Target,
    post_head,
    until_over,
)


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
