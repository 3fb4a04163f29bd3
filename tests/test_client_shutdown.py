"""The end of a client: a dead or hanging engine, and shutdown."""

import asyncio
import time

import pytest

from jaxserve.api.request import FinishReason
from jaxserve.client.in_process import InProcessClient
from jaxserve.engine import loop as loop_module
from jaxserve.errors import EngineDeadError, OverloadedError
from tests.client_world import TIMEOUT_S, collect, expected, gated, run, serving, tokens, until
from tests.engine.world import World, request


def test_when_the_engine_dies_every_stream_ends_and_no_other_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        async with serving(world) as client:
            readers = [
                asyncio.create_task(collect(client, request(name, n=2))) for name in ("a", "b")
            ]
            await asyncio.sleep(0)
            assert client.is_alive
            runner.error = RuntimeError("a secret of the device")
            runner.gate.set()
            for events in await asyncio.gather(*readers):
                assert [event.finish_reason for event in events] == [FinishReason.ERROR] * 2
                assert [event.request_finished for event in events] == [False, True]
                assert events[0].error == "the engine has failed; its log says why"
            assert not client.is_alive
            with pytest.raises(EngineDeadError, match="has failed"):
                client.check_health()
            with pytest.raises(EngineDeadError):
                await collect(client, request("c"))

    run(main())
    assert "a secret of the device" in caplog.text


def test_a_hang_shows_in_health_and_passes() -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        client = InProcessClient(world.engine, None, hang_timeout_s=0.05)
        reader = asyncio.create_task(collect(client, request("a")))
        await until(lambda: not client.is_alive)
        with pytest.raises(EngineDeadError, match="has not finished a step"):
            client.check_health()
        runner.gate.set()
        await reader
        await until(lambda: client.is_alive)
        await client.shutdown(drain_timeout_s=0)

    run(main())


def test_an_idle_engine_stays_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "HEARTBEAT_S", 0.01)

    async def main() -> None:
        client = InProcessClient(World().engine, None, hang_timeout_s=1.0)
        await asyncio.sleep(1.2)
        client.check_health()  # raises if it is not
        assert client.is_alive
        await client.shutdown(drain_timeout_s=0)

    run(main())


def test_shutdown_lets_requests_finish_and_refuses_new_ones() -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        client = InProcessClient(world.engine, world.tokenizer)
        reader = asyncio.create_task(collect(client, request("a")))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(client.shutdown(drain_timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="shutting down"):
            await collect(client, request("b"))
        assert client.is_alive
        runner.gate.set()
        await stopping
        assert tokens(await reader) == expected(world, request("a"))
        assert not client.is_alive
        assert not client._thread.is_alive()
        with pytest.raises(EngineDeadError, match="shut down"):
            await collect(client, request("b"))

    run(main())


def test_shutdown_aborts_what_has_not_finished_in_time() -> None:
    async def main() -> None:
        world = World(max_model_len=10_000, num_pages=3000)
        client = InProcessClient(world.engine, world.tokenizer)
        each = request("a", max_tokens=9000, ignore_eos=True)
        reader = asyncio.create_task(collect(client, each))
        await until(lambda: client.stats().num_generated_tokens > 0)
        start = time.monotonic()
        await client.shutdown(drain_timeout_s=0.05)
        assert time.monotonic() - start < TIMEOUT_S / 2
        events = await reader
        assert events[-1].finish_reason is FinishReason.ABORT
        world.engine.check_integrity()
        assert world.engine.stats().num_pages_used == 0

    run(main())
