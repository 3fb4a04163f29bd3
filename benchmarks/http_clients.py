"""Measure the cost of HTTP clients for a load generator: CPU time per streamed chunk.

    python -m benchmarks.http_clients --requests 128 --chunks 100

A server process streams chunks like an OpenAI-compatible server. Each client reads 16 streams at
once in its own process, decodes the JSON of each chunk, and reports its CPU time per chunk.
`jaxserve` is the client of `bench serve` (jaxserve/bench/http.py); aiohttp is measured if it is
installed. The clients alternate; the table shows the median of the rounds.
"""

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from statistics import median
from typing import Any

import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jaxserve.bench.environment import describe_host
from jaxserve.bench.http import HttpClient
from jaxserve.bench.serving import wait_until_ready

STREAMS = 16
PATH = "/v1/completions"
CHUNK = {
    "id": "cmpl-0123456789abcdef0123456789abcdef",
    "object": "text_completion",
    "created": 1763733600,
    "model": "llama-3.1-8b",
    "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}],
}

type Open = Callable[[bytes], Any]  # an async context manager of an iterator of bytes


async def answer(http: Request) -> Response:
    """Stream as many chunks as are asked for, a moment apart."""
    count = (await http.json())["max_tokens"]

    async def events() -> AsyncGenerator[bytes]:
        for _ in range(count):
            yield b"data: " + json.dumps(CHUNK).encode() + b"\n\n"
            await asyncio.sleep(0.005)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def serve(port: int) -> None:
    """Run the server."""
    app = Starlette(routes=[Route(PATH, answer, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="error")


@asynccontextmanager
async def opened(name: str, url: str) -> AsyncIterator[Open]:
    """Yield what sends a body with a client, and streams the answer's bytes."""
    headers = {"Content-Type": "application/json"}
    if name == "jaxserve":
        own = HttpClient(url)

        @asynccontextmanager
        async def with_own(body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
            async with own.request("POST", PATH, body=body) as response:
                yield response.chunks()

        yield with_own
        own.close()
    elif name == "httpx":
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:

            @asynccontextmanager
            async def with_httpx(body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
                async with client.stream("POST", PATH, content=body) as response:
                    yield response.aiter_raw()

            yield with_httpx
    else:
        import aiohttp  # type: ignore[import-not-found]  # noqa: PLC0415

        async with aiohttp.ClientSession(base_url=url, headers=headers) as session:

            @asynccontextmanager
            async def with_aiohttp(body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
                async with session.post(PATH, data=body) as response:
                    yield response.content.iter_any()

            yield with_aiohttp


async def measure(name: str, url: str, *, num_requests: int, num_chunks: int) -> float:
    """Return microseconds of processor time per chunk."""
    body = json.dumps({"prompt": [17] * 128, "max_tokens": num_chunks}).encode()
    places = asyncio.Semaphore(STREAMS)

    async def ask(open_: Open) -> None:
        rest = b""
        async with places, open_(body) as chunks:
            async for data in chunks:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: {"):
                        json.loads(line[6:])

    async with opened(name, url) as open_:
        await ask(open_)
        start_s = time.process_time()
        asks: list[Awaitable[None]] = [ask(open_) for _ in range(num_requests)]
        await asyncio.gather(*asks)
        return (time.process_time() - start_s) / (num_requests * num_chunks) * 1e6


async def problem(url: str) -> str | None:
    """Return why the server does not answer."""
    try:
        async with HttpClient(url).request("GET", "/") as response:
            await response.read()
    except OSError as error:
        return repr(error)
    return None


def main() -> None:
    """Measure all clients in turns and print a table; with --client, one of them once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("requests", 128), ("chunks", 100), ("rounds", 3), ("port", 8766)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    url = f"http://127.0.0.1:{args.port}"
    sizes = {"num_requests": args.requests, "num_chunks": args.chunks}
    if args.client is not None:
        name, loop = args.client.split(",")
        run = uvloop.run if loop == "uvloop" else asyncio.run
        print(run(measure(name, url, **sizes)))
        return
    names = ["jaxserve", "httpx", *(["aiohttp"] if find_spec("aiohttp") else [])]
    clients = [f"{name},{loop}" for name in names for loop in ("uvloop", "asyncio")]
    found: dict[str, list[float]] = {client: [] for client in clients}
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(args.port,))
    server.start()
    try:
        asyncio.run(wait_until_ready(lambda: problem(url), 30))
        for _ in range(args.rounds):
            for client in clients:
                command = [sys.executable, "-m", "benchmarks.http_clients", "--client", client]
                command += ["--requests", str(args.requests), "--chunks", str(args.chunks)]
                command += ["--port", str(args.port)]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[client].append(float(said))
    finally:
        server.terminate()
        server.join()
    print(", ".join(f"{name} {value}" for name, value in describe_host().items()))
    print("| client | event loop | µs per chunk | each round |\n|---|---|---|---|")
    for client, values in found.items():
        each = ", ".join(f"{value:.0f}" for value in values)
        print(f"| {client.replace(',', ' | ')} | {median(values):.0f} | {each} |")


if __name__ == "__main__":
    main()
