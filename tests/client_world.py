"""In-process clients of engines whose runner waits for the test before each step."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from jaxserve.api.plan import DeferredSamplePlan, StepPlan
from jaxserve.api.request import Request, TokenEvent
from jaxserve.client import EngineClient
from jaxserve.client.in_process import InProcessClient
from tests.engine.world import World
from tests.fakes import FakePendingStep, FakeRunner

TIMEOUT_S = 20.0


class GatedRunner:
    """A device that waits before each step until the test releases it or lets it fail."""

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
        return self._runner.sample_deferred(plan)


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
