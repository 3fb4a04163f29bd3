"""Compare scheduling policies on a virtual clock, with the real scheduler.

    python -m benchmarks.scheduling [long load prefixes waste host]

A simple cost model gives the time of a step: the longer of reading the weights and multiplying the
padded tokens, plus attention. So minutes of traffic take seconds, and the figures are the same on
every machine. Use them to compare policies, not to predict a machine. Only `host` measures real
time: microseconds to schedule and commit a step.
"""

import argparse
import gc
import random
import time
from collections import deque
from dataclasses import dataclass, replace
from math import inf, log
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

from benchmarks.virtual_device import (
    LARGE_ON_GPU,
    SMALL_ON_CPU,
    Arrival,
    Device,
    quantile,
    simulate,
)
from jaxserve.api.engine_config import CacheConfig, SchedulerConfig, WorkModel
from jaxserve.api.plan import StepPlan, StepResult
from jaxserve.engine import admission
from jaxserve.engine.scheduler import Scheduler


def make_scheduler(
    device: Device,
    *,
    slowdown: float = 2.0,
    work: WorkModel | None = None,
    sizes: tuple[int, ...] | None = None,
    num_pages: int = 60_000,
    page_size: int = 16,
    enable_prefix_caching: bool = True,
) -> Scheduler:
    """Return a scheduler for a device, by default with the device's own cost model."""
    config = SchedulerConfig(
        max_model_len=2**17,
        max_num_seqs=device.decode_sizes[-1],
        max_num_batched_tokens=device.sizes[-1],
        max_decode_slowdown=slowdown,
        max_queued_requests=10**6,
        work=device.work if work is None else work,
        step_sizes=device.sizes if sizes is None else sizes,
    )
    cache = CacheConfig.paged(
        num_pages=num_pages, page_size=page_size, enable_prefix_caching=enable_prefix_caching
    )
    return Scheduler(config, cache)


# Policies: count tokens only; also count work and padding; also limit the slowdown of decodes.
POLICIES: dict[str, dict[str, Any]] = {
    "tokens alone": {"slowdown": inf, "work": WorkModel(), "sizes": ()},
    "work, no limit": {"slowdown": inf},
    "slowdown 8": {"slowdown": 8.0},
    "slowdown 4": {"slowdown": 4.0},
    "slowdown 3": {"slowdown": 3.0},
    "slowdown 2": {"slowdown": 2.0},
    "slowdown 1.5": {"slowdown": 1.5},
}


class Traffic:
    """Makes requests of random tokens."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)

    def prompt(self, length: int) -> tuple[int, ...]:
        """Return so many random tokens."""
        return tuple(self._draw.choices(range(32_000), k=length))

    def long_prompt(
        self, length: int, *, num_decodes: int, num_short: int, every_s: float
    ) -> list[Arrival]:
        """Return sequences that decode, a long prompt two seconds later, then short ones."""
        return [
            *(Arrival(0.0, f"decode {i}", self.prompt(100), 3000) for i in range(num_decodes)),
            Arrival(2.0, "long", self.prompt(length), 4),
            *(
                Arrival(2.1 + i * every_s, f"short {i}", self.prompt(200), 4)
                for i in range(num_short)
            ),
        ]

    def at_once(self, count: int) -> list[Arrival]:
        """Return requests of about 170 and 87 tokens in the mean, all at once."""
        return [
            Arrival(0.0, str(i), self.prompt(self._length(170, 0.8)), self._length(87, 0.55))
            for i in range(count)
        ]

    def steady(self, count: int, *, rate: float, num_prompt: int, num_output: int) -> list[Arrival]:
        """Return requests that come at random, `rate` per second."""
        arrivals, now_s = [], 0.0
        for i in range(count):
            now_s += self._draw.expovariate(rate)
            prompt_ids = self.prompt(self._length(num_prompt, 0.3))
            arrivals.append(Arrival(now_s, str(i), prompt_ids, self._length(num_output, 0.3)))
        return arrivals

    def few_shot(self, count: int, *, num_prefixes: int, prefix: int) -> list[Arrival]:
        """Return requests all at once, each with one of a few long prefixes and 60 tokens more."""
        prefixes = [self.prompt(prefix) for _ in range(num_prefixes)]
        return [
            Arrival(0.0, str(i), self._draw.choice(prefixes) + self.prompt(60), 40)
            for i in range(count)
        ]

    def _length(self, mean: float, sigma: float) -> int:
        return max(2, round(self._draw.lognormvariate(log(mean) - sigma**2 / 2, sigma)))


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Latencies beside a long prompt, in seconds."""

    before: list[float]  # between tokens of those who decode, before it came
    during: list[float]  # and while it was computed
    ttft_s: float
    short_ttft_s: list[float]


def long_prompt(scheduler: Scheduler, device: Device, arrivals: list[Arrival]) -> LongPrompt:
    """Measure `Traffic.long_prompt`."""
    traces = simulate(scheduler, device, arrivals).traces
    long = traces["long"]
    start_s, stop_s = long.arrival_s, long.token_s[0]
    decodes = [trace for name, trace in traces.items() if name.startswith("decode")]
    return LongPrompt(
        before=[gap for trace in decodes for gap in trace.gaps(start_s / 2, start_s)],
        during=[gap for trace in decodes for gap in trace.gaps(start_s, stop_s)],
        ttft_s=long.ttft_s,
        short_ttft_s=[
            trace.ttft_s
            for name, trace in traces.items()
            if name.startswith("short") and trace.arrival_s < stop_s
        ],
    )


def print_long() -> None:
    """Print what a long prompt does to those who decode, and to short prompts behind it."""
    for device, length, every_s in ((LARGE_ON_GPU, 100_000, 0.3), (SMALL_ON_CPU, 20_000, 2.0)):
        for num_decodes in (16, device.decode_sizes[-1] * 3 // 4):
            print(f"\n{device.name}: {num_decodes} decode, then a prompt of {length} tokens comes")
            print("                 ITL ms: before    during                     TTFT s: short")
            print("policy                      p50       p50       p99   ratio  long    p50    max")
            for name, settings in POLICIES.items():
                arrivals = Traffic().long_prompt(
                    length, num_decodes=num_decodes, num_short=20, every_s=every_s
                )
                seen = long_prompt(make_scheduler(device, **settings), device, arrivals)
                half, most = quantile(seen.during, 0.5), quantile(seen.during, 0.99)
                print(
                    f"{name:<20}{quantile(seen.before, 0.5) * 1e3:11.1f}{half * 1e3:10.1f}"
                    f"{most * 1e3:10.1f}{most / half:8.2f}{seen.ttft_s:6.0f}"
                    f"{quantile(seen.short_ttft_s, 0.5):7.2f}{max(seen.short_ttft_s):7.2f}"
                )


def print_load() -> None:
    """Print throughput and latencies of ordinary loads."""
    loads = {
        SMALL_ON_CPU: {
            "64 at once": Traffic().at_once(64),
            "5 a second": Traffic().steady(100, rate=5, num_prompt=170, num_output=87),
        },
        LARGE_ON_GPU: {
            "1024 at once": Traffic().at_once(1024),
            "60 a second": Traffic().steady(1000, rate=60, num_prompt=220, num_output=180),
            "2048 in, 128 out": Traffic().steady(500, rate=1e3, num_prompt=2048, num_output=128),
        },
    }
    for device, by_name in loads.items():
        for load, arrivals in by_name.items():
            print(f"\n{device.name}: {load}")
            print("policy              output tok/s    TTFT s: mean    p99   ITL ms: p50    p99")
            for name, settings in POLICIES.items():
                run = simulate(make_scheduler(device, **settings), device, arrivals)
                ttft_s = [trace.ttft_s for trace in run.traces.values()]
                gaps = [gap for trace in run.traces.values() for gap in trace.gaps()]
                print(
                    f"{name:<20}{run.output_tokens_per_s:12.0f}{fmean(ttft_s):16.2f}"
                    f"{quantile(ttft_s, 0.99):7.2f}{quantile(gaps, 0.5) * 1e3:14.1f}"
                    f"{quantile(gaps, 0.99) * 1e3:7.1f}"
                )


def print_prefixes() -> None:
    """Print what shared prefixes save, when there is room for them and when there is not."""
    device = LARGE_ON_GPU
    cases: dict[str, tuple[list[Arrival], int]] = {
        "64 at once, one prefix of 640": (
            Traffic().few_shot(64, num_prefixes=1, prefix=640),
            60_000,
        ),
        "1500 at once, 100 of 2000, room for half": (
            Traffic().few_shot(1500, num_prefixes=100, prefix=2000),
            8000,
        ),
        "1500 at once, 100 of 2000, room for a quarter": (
            Traffic().few_shot(1500, num_prefixes=100, prefix=2000),
            4000,
        ),
    }
    # Name, whether there is a prefix cache, and how often a sequence is passed over.
    orders = (
        ("no prefix cache", False, 0),
        ("in order", True, 0),
        ("nearest to the cache", True, admission.MAX_PASSED),
    )
    for case, (arrivals, num_pages) in cases.items():
        print(f"\n{device.name}: {case}")
        print("                         hits      s   TTFT s: mean")
        for name, is_cached, max_passed in orders:
            scheduler = make_scheduler(device, num_pages=num_pages, enable_prefix_caching=is_cached)
            with patch.object(admission, "MAX_PASSED", max_passed):
                run = simulate(scheduler, device, arrivals)
            stats = scheduler.stats()
            ttft_s = fmean(trace.ttft_s for trace in run.traces.values())
            hits = stats.prefix_hits / stats.prefix_queries
            print(f"{name:<22}{hits:6.1%}{run.elapsed_s:8.2f}{ttft_s:13.2f}")


def print_waste() -> None:
    """Print the share of KV memory that is taken and empty, by page size."""
    for device, count in ((SMALL_ON_CPU, 64), (LARGE_ON_GPU, 1024)):
        print(f"\n{device.name}: {count} at once of about 170 + 87 tokens")
        print("page size   KV waste")
        for page_size in (8, 16, 32, 64):
            scheduler = make_scheduler(device, page_size=page_size)
            simulate(scheduler, device, Traffic().at_once(count))
            print(f"{page_size:9}{kv_waste(scheduler):11.1%}")


def kv_waste(scheduler: Scheduler) -> float:
    """Return the share of token slots in used pages that were empty, over all steps so far."""
    stats = scheduler.stats()
    return stats.num_empty_kv_slots / stats.num_kv_slots


def print_host(num_steps: int = 200) -> None:
    """Print real microseconds: of steps that decode, and of prompts that find nothing cached."""
    print("\nhost, median microseconds\nsequences   schedule   commit     both")
    for count in (1, 64, 256, 512):
        device = replace(LARGE_ON_GPU, decode_sizes=(512,))
        scheduler = make_scheduler(device)
        for i in range(count):
            arrival = Arrival(0.0, str(i), Traffic(i).prompt(100), 2 * num_steps)
            scheduler.add(arrival.request)
        plans, spent = deque[StepPlan](), list[tuple[float, float]]()
        gc.collect()
        gc.freeze()
        for _ in range(num_steps):
            start_s = time.perf_counter()
            plan = scheduler.schedule()
            planned_s = time.perf_counter() - start_s
            assert plan is not None
            plans.append(plan)
            if len(plans) == 2:
                plan = plans.popleft()
                result = StepResult(token_ids=((7,),) * len(plan.rows))
                start_s = time.perf_counter()
                scheduler.commit(plan, result)
                spent.append((planned_s, time.perf_counter() - start_s))
        schedule, commit = (median(part) * 1e6 for part in zip(*spent[5:], strict=True))
        print(f"{count:9}{schedule:11.0f}{commit:9.0f}{schedule + commit:9.0f}")
    print("\nhost, microseconds of a prompt of 1000 tokens from its arrival to its first token")
    for name, is_on in (("prefix cache off", False), ("on, no hits", True)):
        seconds = []
        for serial in range(200):
            scheduler = make_scheduler(LARGE_ON_GPU, num_pages=200, enable_prefix_caching=is_on)
            request = Arrival(0.0, "a", Traffic(serial).prompt(1000), 1).request
            start_s = time.perf_counter()
            scheduler.add(request)
            while scheduler.has_unfinished:
                plan = scheduler.schedule()
                assert plan is not None
                tokens = tuple((7,) if row.samples else () for row in plan.rows)
                scheduler.commit(plan, StepResult(token_ids=tokens))
            seconds.append(time.perf_counter() - start_s)
        print(f"{name:<18}{median(seconds) * 1e6:7.0f}")


TABLES = {
    "long": print_long,
    "load": print_load,
    "prefixes": print_prefixes,
    "waste": print_waste,
    "host": print_host,
}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=" ".join(TABLES))
    for table in parser.parse_args().tables or TABLES:
        TABLES[table]()


if __name__ == "__main__":
    main()
