"""A stream's beginning and end, whatever its generator does."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from jaxserve.errors import OverloadedError
from jaxserve.server.http import sse
from jaxserve.server.http.sse import EventStream

TIMEOUT_S = 20.0


def app(events: AsyncGenerator[bytes]) -> TestClient:
    async def endpoint(_: object) -> EventStream:
        return EventStream(events)

    application = Starlette(routes=[Route("/", endpoint)])
    return TestClient(application, raise_server_exceptions=False)


def test_an_error_before_the_first_event_is_a_plain_answer() -> None:
    async def events() -> AsyncGenerator[bytes]:
        raise OverloadedError("full", retry_after_s=2.5)
        yield b""

    response = app(events()).get("/")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-type"] == "application/json"


def test_an_error_after_the_first_event_is_the_last_event() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise OverloadedError("full", retry_after_s=1.0)

    response = app(events()).get("/")
    assert response.status_code == 200
    assert response.text.startswith('data: 1\n\ndata: {"error":{"message":"full"')
    assert response.text.endswith("}}\n\n")


def test_a_fault_of_ours_is_told_without_its_words() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise ZeroDivisionError("secret")

    response = app(events()).get("/")
    assert '"code":"internal_error"' in response.text
    assert "secret" not in response.text


def test_a_stream_of_nothing_is_an_empty_answer() -> None:
    async def events() -> AsyncGenerator[bytes]:
        return
        yield b""

    response = app(events()).get("/")
    assert (response.status_code, response.text) == (200, "")


@pytest.fixture
def pinged(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Awaitable[None]]:
    """Waits until so many comments have been sent, without which it would wait forever."""
    monkeypatch.setattr(sse, "PING_INTERVAL_S", 0.01)
    counted = asyncio.Semaphore(0)
    send = EventStream._send

    async def counting(stream: EventStream, piece: bytes, *rest: Any, **more: Any) -> None:
        await send(stream, piece, *rest, **more)
        if piece == sse.PING:
            counted.release()

    async def until(num_comments: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(num_comments):
                await counted.acquire()

    monkeypatch.setattr(EventStream, "_send", counting)
    return until


def test_comments_keep_a_stream_open_that_is_long_in_coming(
    pinged: Callable[[int], Awaitable[None]],
) -> None:
    async def events() -> AsyncGenerator[bytes]:
        await pinged(3)
        yield b"data: 1\n\n"

    *comments, event, end = app(events()).get("/").text.split("\n\n")
    assert (event, end) == ("data: 1", "")
    assert set(comments) == {": waiting"}
    assert len(comments) >= 3


def test_an_error_after_a_comment_is_an_event(pinged: Callable[[int], Awaitable[None]]) -> None:
    async def events() -> AsyncGenerator[bytes]:
        await pinged(1)
        raise OverloadedError("full", retry_after_s=1.0)
        yield b""

    response = app(events()).get("/")
    assert response.status_code == 200
    *comments, event, _ = response.text.split("\n\n")
    assert set(comments) == {": waiting"}
    assert event.startswith('data: {"error":{"message":"full"')
