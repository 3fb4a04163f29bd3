"""Latency benchmark: time of an engine for one batch of requests."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxserve.bench.statistics import mean, percentile
from jaxserve.bench.throughput import run_jobs
from jaxserve.bench.workload import Job
from jaxserve.offline.llm import LLM

PERCENTS = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """The seconds of each batch."""

    seconds: tuple[float, ...]

    def report(self) -> str:
        """Return vLLM's lines."""
        lines = [f"Avg latency: {mean(self.seconds)} seconds"]
        for percent in PERCENTS:
            seconds = percentile(self.seconds, percent)
            lines.append(f"{percent}% percentile latency: {seconds} seconds")
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        """Return the contents of the result file, with vLLM's keys."""
        return {
            "avg_latency": mean(self.seconds),
            "latencies": list(self.seconds),
            "percentiles": {str(p): percentile(self.seconds, p) for p in PERCENTS},
        }


def measure_latency(
    llm: LLM, *, input_len: int, output_len: int, batch_size: int, num_warmup: int, num_iters: int
) -> Latency:
    """Run batches of distinct random prompts, one after the other."""
    draw = random.Random(0)  # noqa: S311  (nothing secret)
    vocab_size = llm.plan.model.vocab_size

    def batches() -> Iterator[list[Job]]:
        while True:
            yield [
                Job(tuple(draw.choices(range(vocab_size), k=input_len)), output_len)
                for _ in range(batch_size)
            ]

    seconds: list[float] = []
    for jobs, _ in zip(batches(), range(num_warmup + num_iters), strict=False):
        start_s = time.perf_counter()
        run_jobs(llm, jobs, batch=batch_size)
        seconds.append(time.perf_counter() - start_s)
    return Latency(tuple(seconds[num_warmup:]))
