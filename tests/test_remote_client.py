"""Client of an engine in another process: restarted engines, invalid messages, and shutdown."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from jaxserve.api.request import FinishReason, Request, RequestMetrics, TokenEvent
from jaxserve.api.tokens import End, TokenBatch
from jaxserve.client.remote import RemoteClient
from jaxserve.client.wire import decode_command, encode_reply
from jaxserve.engine.loop import Abort, Add, Command
from jaxserve.errors import EngineDeadError, OverloadedError
from tests.engine.world import request, word_tokenizer

TIMEOUT_S = 20.0


class Engine:
    """The other end of the socket, which a test plays."""

    def __init__(self, socket: zmq.asyncio.Socket, address: str) -> None:
        self._socket = socket
        self.address = address

    async def receive(self) -> Command:
        identity, *frames = await self._socket.recv_multipart()
        assert identity == b"3"
        return decode_command(frames)

    async def send(self, frame: bytes) -> None:
        await self._socket.send_multipart([b"3", frame])

    async def give(self, key: int, token_id: int) -> None:
        await self.send(encode_reply(TokenBatch(keys=[key], token_ids=[token_id])))


@asynccontextmanager
async def playing(path: Path) -> AsyncIterator[Engine]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(f"ipc://{path}")
    try:
        yield Engine(socket, f"ipc://{path}")
    finally:
        socket.close(linger=0)
        context.term()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[RemoteClient, Engine]]:
    client = RemoteClient()
    async with playing(path) as engine:
        client.connect(engine.address, client=3, tokenizer=word_tokenizer())
        yield client, engine
        client.disconnect("the test is over")


async def collect(client: RemoteClient, each: Request) -> list[TokenEvent]:
    return [event async for event in client.generate(each)]


def run(main: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(main, TIMEOUT_S))


def test_without_an_engine_the_reason_is_told() -> None:
    async def main() -> None:
        client = RemoteClient()
        assert not client.is_alive
        with pytest.raises(EngineDeadError, match="has not started yet"):
            client.check_health()
        with pytest.raises(EngineDeadError, match="has not started yet"):
            await collect(client, request("a"))

    run(main())


def test_streams_end_with_their_engine_and_the_next_engine_knows_nothing_of_them(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with connected(tmp_path / "1") as (client, engine):
            stream = client.generate(request("a", n=2))
            first = asyncio.ensure_future(anext(stream))
            command = await engine.receive()
            assert isinstance(command, Add)
            await engine.give(command.first_key, 5)
            events = [await first]
            client.disconnect("killed")
            events += [event async for event in stream]
            ends = [event for event in events if event.finish_reason is not None]
            assert [event.error for event in ends] == ["killed"] * 2
            assert {event.finish_reason for event in ends} == {FinishReason.ERROR}
            assert events[-1].request_finished
            assert "".join(event.text for event in events) == "w5"
            with pytest.raises(EngineDeadError, match="killed"):
                client.check_health()
            async with playing(tmp_path / "2") as successor:
                client.connect(successor.address, client=3, tokenizer=word_tokenizer())
                client.check_health()
                again = asyncio.create_task(collect(client, request("b")))
                command = await successor.receive()
                assert isinstance(command, Add)
                assert command.request.id == "b"
                end = End(command.first_key, FinishReason.LENGTH, RequestMetrics(arrival_s=0.0))
                await successor.send(encode_reply(TokenBatch(ends=[end])))
                assert (await again)[-1].finish_reason is FinishReason.LENGTH

    run(main())


def test_a_message_that_makes_no_sense_fails_what_it_may_be_about_and_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with connected(tmp_path / "1") as (client, engine):
            reader = asyncio.create_task(collect(client, request("a")))
            await engine.receive()
            await engine.send(b"\xc1 rubbish")
            (event,) = await reader
            assert event.error == "an internal error has ended this request"
            assert await engine.receive() == Abort("a")
            later = asyncio.create_task(collect(client, request("b")))
            command = await engine.receive()
            assert isinstance(command, Add)
            end = End(command.first_key, FinishReason.STOP, RequestMetrics(arrival_s=0.0))
            await engine.send(encode_reply(TokenBatch(ends=[end])))
            assert (await later)[-1].finish_reason is FinishReason.STOP

    run(main())
    assert "malformed message" in caplog.text


def test_shutdown_aborts_what_has_not_finished_and_refuses_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "1") as (client, engine):
            reader = asyncio.create_task(collect(client, request("a")))
            command = await engine.receive()
            assert isinstance(command, Add)
            stopping = asyncio.create_task(client.shutdown(drain_timeout_s=0.05))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="shutting down"):
                await collect(client, request("b"))
            assert await engine.receive() == Abort("a")
            end = End(command.first_key, FinishReason.ABORT, RequestMetrics(arrival_s=0.0))
            await engine.send(encode_reply(TokenBatch(ends=[end])))
            assert (await reader)[-1].finish_reason is FinishReason.ABORT
            await stopping
            assert not client.is_alive

    run(main())


def test_closing_a_stream_aborts_its_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "1") as (client, engine):
            stream = client.generate(request("a"))
            first = asyncio.ensure_future(anext(stream))
            command = await engine.receive()
            assert isinstance(command, Add)
            await engine.give(command.first_key, 5)
            await first
            await stream.aclose()
            assert await engine.receive() == Abort("a")

    run(main())
