"""The in-process client: streams across threads, aborts, slow readers, death and shutdown."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager

import pytest

from jaxserve.api.plan import DeferredSamplePlan, StepPlan
from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.client import EngineClient
from jaxserve.client.in_process import InProcessClient
from jaxserve.client.streams import Stream
from jaxserve.engine import loop as loop_module
from jaxserve.errors import EngineDeadError, InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.frontend.detokenizer import Detokenizer
from tests.engine.world import World, request, word_tokenizer, words
from tests.fakes import FakePendingStep, FakeRunner, token_logprobs

TIMEOUT_S = 20.0


class GatedRunner:
    """A device that computes a step when it is told to continue, or fails."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner = runner
        self.limits, self.max_in_flight = runner.limits, runner.max_in_flight
        self.gate = threading.Event()
        self.error: Exception | None = None

    def dispatch(self, plan: StepPlan) -> FakePendingStep:
        assert self.gate.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return self._runner.dispatch(plan)

    def sample_deferred(self, plan: DeferredSamplePlan) -> FakePendingStep:
        return self._runner.draw(plan)


@asynccontextmanager
async def serving(world: World, *, drain_timeout_s: float = 0.0) -> AsyncIterator[InProcessClient]:
    client = InProcessClient(world.engine, world.tokenizer)
    try:
        yield client
    finally:
        await client.shutdown(drain_timeout_s=drain_timeout_s)


def gated(world: World) -> GatedRunner:
    runner = GatedRunner(world.runner)
    world.engine._runner = runner
    return runner


async def collect(client: EngineClient, each: Request) -> list[TokenEvent]:
    return [event async for event in client.generate(each)]


def tokens(events: list[TokenEvent], index: int = 0) -> list[int]:
    return [token for event in events if event.index == index for token in event.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's
            await asyncio.sleep(0.001)


def run(main: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(main, TIMEOUT_S))


def expected(world: World, each: Request, index: int = 0) -> list[int]:
    world.requests[each.id] = each
    return world.expected(each.id, index)


# Streams


def test_concurrent_requests_get_their_own_tokens() -> None:
    async def main() -> None:
        world = World()
        requests = [request(str(n), (n, 2, 3), n=1 + n % 2, seed=n) for n in range(20)]
        async with serving(world) as client:
            answers = await asyncio.gather(*(collect(client, each) for each in requests))
            for each, events in zip(requests, answers, strict=True):
                assert [event.request_finished for event in events].count(True) == 1
                assert events[-1].request_finished
                for index in range(each.params.n):
                    assert tokens(events, index) == expected(world, each, index)
            assert client.stats().num_generated_tokens > 0
        world.engine.check_integrity()

    run(main())


def test_streams_of_two_event_loops_do_not_mix() -> None:
    world = World()
    client = InProcessClient(world.engine, world.tokenizer)
    answers: dict[str, list[TokenEvent]] = {}

    def on_its_own_loop(name: str) -> None:
        answers[name] = asyncio.run(collect(client, request(name, (ord(name) % 60, 2))))

    threads = [threading.Thread(target=on_its_own_loop, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    asyncio.run(client.shutdown(drain_timeout_s=0))
    for name in "abcd":
        assert tokens(answers[name]) == expected(world, request(name, (ord(name) % 60, 2)))


def test_a_slow_reader_gets_the_same_in_fewer_events() -> None:
    async def main() -> None:
        world = World(tokenizer=word_tokenizer())
        each = request("a", max_tokens=30, ignore_eos=True, logprobs=0, prompt_logprobs=0)
        async with serving(world) as client:
            stream = client.generate(each)
            events = [await anext(stream)]
            await until(lambda: not world.engine.has_work)
            await asyncio.sleep(0)  # the loop runs what the engine's thread has sent
            events += [event async for event in stream]
            says = expected(world, each)
            assert len(events) <= 4
            assert tokens(events) == says
            assert "".join(event.text for event in events) == words(says)
            logprobs = [logprob for event in events for logprob in event.logprobs]
            assert logprobs == [token_logprobs(token) for token in says]
            assert [e.prompt_logprobs is not None for e in events].count(True) == 1
            assert events[-1].finish_reason is FinishReason.LENGTH

    run(main())


def test_merging_keeps_the_last_event_last() -> None:
    async def main() -> None:
        stream = Stream()
        for index, is_last in ((0, False), (1, False), (0, True)):
            stream.put(TokenEvent(request_id="a", index=index, request_finished=is_last))
        assert [event.request_finished for event in await stream.get()] == [False, True]

    run(main())


def test_each_step_wakes_a_loop_once() -> None:
    async def main() -> None:
        world = World(max_num_seqs=8)
        calls = 0
        loop = asyncio.get_running_loop()
        call_soon_threadsafe = loop.call_soon_threadsafe

        def count(*args: object) -> object:
            nonlocal calls
            calls += threading.current_thread().name == "jaxserve-engine"
            return call_soon_threadsafe(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = count  # type: ignore[assignment, method-assign]
        async with serving(world) as client:
            requests = [request(str(n), (n, 2), ignore_eos=True) for n in range(8)]
            await asyncio.gather(*(collect(client, each) for each in requests))
        assert 0 < calls <= len(world.runner.plans)

    run(main())


# Refusals


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request("a", (999,)), InvalidRequestError),
        (request("a", stop=("x",)), InvalidRequestError),
    ],
)
def test_a_refusal_is_raised_to_the_caller(bad: Request, error: type[Exception]) -> None:
    async def main() -> None:
        async with serving(World()) as client:
            with pytest.raises(error):
                await collect(client, bad)
            assert len(await collect(client, request("a"))) > 0

    run(main())


def test_a_full_queue_is_raised_to_the_caller() -> None:
    async def main() -> None:
        world = World(max_queued_requests=1, max_num_seqs=1)
        runner = gated(world)
        async with serving(world) as client:
            first = asyncio.create_task(collect(client, request("a")))
            await until(lambda: client._engine.stats().num_running == 1)
            others = [asyncio.create_task(collect(client, request(name))) for name in "bc"]
            await asyncio.sleep(0)
            runner.gate.set()
            with pytest.raises(OverloadedError):
                await asyncio.gather(*others)
            await first

    run(main())


def test_an_id_in_use_is_refused_and_its_user_left_alone() -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        async with serving(world) as client:
            first = asyncio.create_task(collect(client, request("a")))
            await asyncio.sleep(0)
            with pytest.raises(InvalidRequestError, match="already in use"):
                await collect(client, request("a"))
            runner.gate.set()
            assert tokens(await first) == expected(world, request("a"))

    run(main())


def test_a_request_that_breaks_while_it_is_added_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("a secret")

    async def main() -> None:
        async with serving(World(tokenizer=word_tokenizer())) as client:
            with monkeypatch.context() as patch:
                patch.setattr(Detokenizer, "__init__", broken)
                with pytest.raises(JaxserveError, match="an internal error"):
                    await collect(client, request("a"))
            assert len(await collect(client, request("a"))) > 0

    run(main())


# Leaving


def test_closing_a_stream_aborts_its_request() -> None:
    async def main() -> None:
        world = World()
        async with serving(world) as client:
            async with aclosing(client.generate(request("a", max_tokens=50))) as stream:
                await anext(stream)
            await until(lambda: client.stats().num_running == 0 and not world.engine.has_work)
            assert world.engine.stats().num_pages_used == 0

    run(main())


def test_cancelling_a_reader_aborts_its_request() -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        async with serving(world) as client:
            reader = asyncio.create_task(collect(client, request("a", max_tokens=50)))
            await asyncio.sleep(0.01)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            runner.gate.set()
            await until(lambda: not world.engine.has_work and client.is_idle)
            assert len(world.runner.plans) <= 2

    run(main())


def test_an_abort_lets_the_stream_end() -> None:
    async def main() -> None:
        world = World()
        runner = gated(world)
        async with serving(world) as client:
            reader = asyncio.create_task(collect(client, request("a", max_tokens=50, n=2)))
            await asyncio.sleep(0)
            client.abort("a")
            client.abort("unknown")
            runner.gate.set()
            events = await reader
            assert [event.finish_reason for event in events] == [FinishReason.ABORT] * 2
            assert events[-1].request_finished

    run(main())


def test_a_loop_that_is_gone_costs_one_request_and_nobody_else() -> None:
    world = World()
    runner = gated(world)
    client = InProcessClient(world.engine, world.tokenizer)

    async def leave_open() -> None:
        stream = client.generate(request("gone", max_tokens=50))
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        abandoned.append((stream, reader))

    abandoned: list[tuple[AsyncGenerator[TokenEvent, None], asyncio.Future[TokenEvent]]] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # that its tasks are pending is the point
    loop.run_until_complete(leave_open())
    loop.close()
    runner.gate.set()

    async def main() -> None:
        assert tokens(await collect(client, request("a"))) == expected(world, request("a"))
        await until(lambda: client.is_idle)
        await client.shutdown(drain_timeout_s=0)

    run(main())
    assert len(world.runner.plans) < 50


# Death


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


# Shutdown


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
