"""Send requests to a server at their arrival times, within a concurrency limit."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from jaxserve.bench.endpoint import Endpoint, Record
from jaxserve.bench.workload import Job
from jaxserve.errors import JaxserveError

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Run:
    """Results of a run, and the number of cores that the client used."""

    records: list[Record]
    duration_s: float
    client_cores: float


async def drive(
    endpoint: Endpoint,
    jobs: Sequence[Job],
    times_s: Sequence[float],
    *,
    max_concurrency: int | None = None,
    progress: Callable[[Record], object] = lambda _: None,
) -> Run:
    """Send each job's request at its time after the start. Return when all have ended.

    max_concurrency: maximum number in flight. Requests beyond it wait, and their clocks start when
    they are sent. progress: called after each request.
    """
    bodies = [endpoint.body(job) for job in jobs]
    places = asyncio.Semaphore(len(jobs) if max_concurrency is None else max_concurrency)

    async def ask(body: bytes, due_s: float) -> Record:
        await asyncio.sleep(due_s - time.perf_counter())
        arrived_s = time.perf_counter()
        async with places:
            waited_s = time.perf_counter() - arrived_s
            record = await endpoint.ask(body)
        record.queue_s = waited_s
        progress(record)
        return record

    # Existing objects live until the end, so exclude them from garbage collection.
    gc.collect()
    gc.freeze()
    used_s = time.process_time()
    start_s = time.perf_counter()
    records = await asyncio.gather(
        *(ask(body, start_s + time_s) for body, time_s in zip(bodies, times_s, strict=True))
    )
    duration_s = time.perf_counter() - start_s
    return Run(records, duration_s, (time.process_time() - used_s) / duration_s)


async def wait_until_ready(problem: Callable[[], Awaitable[str | None]], timeout_s: float) -> None:
    """Wait until a server is ready. Raises JaxserveError after a timeout.

    problem: queries the server and returns the error, or None.
    """
    until_s = time.perf_counter() + timeout_s
    while (said := await problem()) is not None:
        if time.perf_counter() + RETRY_S > until_s:
            raise JaxserveError(f"the server was not ready in {timeout_s:g} s: {said}")
        await asyncio.sleep(RETRY_S)


async def warm_up(endpoint: Endpoint, job: Job, count: int) -> None:
    """Send one job several times concurrently. Raises JaxserveError if one fails."""
    body = endpoint.body(job)
    for record in await asyncio.gather(*(endpoint.ask(body) for _ in range(count))):
        if record.error is not None:
            raise JaxserveError(f"a warm-up request failed: {record.error}")
