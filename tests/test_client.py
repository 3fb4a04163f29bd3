"""The in-process client: streams across threads, aborts, slow readers, death and shutdown."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.client.in_process import InProcessClient
from jaxserve.client.streams import Stream
from jaxserve.errors import InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.frontend.detokenizer import Detokenizer
from tests.client_world import TIMEOUT_S, collect, expected, gated, run, serving, tokens, until
from tests.engine.world import World, request, word_tokenizer, words
from tests.fakes import token_logprobs


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
