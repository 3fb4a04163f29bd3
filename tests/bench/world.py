"""A server that answers as OpenAI's do, with delays and faults that a test chooses."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = {"data": [{"id": "stand-in", "root": "/nowhere/stand-in"}]}


@dataclass
class StandIn:
    """Settings and observations of the fake server.

    A prompt takes ttft_s, a further chunk itl_s; a chunk has tokens_per_chunk tokens; an answer
    lacks missing_tokens of what was asked for. The first num_refused requests are refused. fault:
    "status", "error", "cut" or "silent", in answers to prompts that begin with faulty_token, None
    for all.
    """

    ttft_s: float = 0.0
    itl_s: float = 0.0
    tokens_per_chunk: int = 1
    missing_tokens: int = 0
    num_refused: int = 0
    fault: str | None = None
    faulty_token: int | None = 13
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    clients: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    num_running: int = 0
    max_running: int = 0
    url: str = ""

    async def answer(self, http: Request) -> Response:
        """Stream an answer."""
        body = await http.json()
        self.bodies.append(body)
        self.headers.append(dict(http.headers))
        assert http.client is not None
        self.clients.add((http.client.host, http.client.port))
        if len(self.bodies) <= self.num_refused:
            return JSONResponse({"error": {"message": "still loading"}}, status_code=503)
        has_fault = self.faulty_token in {None, body.get("prompt", [0])[0]}
        if has_fault and self.fault == "status":
            return JSONResponse({"error": {"message": "queue is full"}}, status_code=503)
        events = self._events(body, fault=self.fault if has_fault else None)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], *, fault: str | None) -> AsyncGenerator[bytes]:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        is_chat = "messages" in body
        num_tokens = body["max_completion_tokens" if is_chat else "max_tokens"]
        num_tokens -= self.missing_tokens
        if is_chat:
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(self.ttft_s)
        for index in range(0, num_tokens, self.tokens_per_chunk):
            if index and fault in {"error", "cut"}:
                if fault == "error":
                    yield event({"error": {"message": "the engine has died"}})
                self.num_running -= 1
                return
            await asyncio.sleep(self.itl_s if index else 0.0)
            text = "word " * self.tokens_per_chunk
            choice = {"delta": {"content": text}} if is_chat else {"text": text}
            yield event({"choices": [{"index": 0, **choice}]})
        self.num_running -= 1
        if is_chat:
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if fault != "silent":
            usage = {"prompt_tokens": 7, "completion_tokens": num_tokens}
            yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def event(fields: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Serve on a free port for the time of the block."""

    async def models(http: Request) -> Response:
        return JSONResponse(MODELS)

    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/completions", stand_in.answer, methods=["POST"]),
            Route("/v1/chat/completions", stand_in.answer, methods=["POST"]),
        ]
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        stand_in.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.001)
            yield stand_in
        finally:
            server.should_exit = True
            thread.join(timeout=30)
