"""Measure the cost of prefix caching without hits, and its gain with hits.

    python -m benchmarks.prefix_caching MODEL --rounds 60 --results benchmarks/results

One engine runs the same requests twice per round, with and without prefix caching, alternating
which goes first. The result is the ratio of such a pair. A single engine is used because two
engines differ by more than the cost of caching, through their memory placement. Every run starts
with an empty cache, has twice as many requests as run at once, and pages for three quarters of
them, so that caching must evict. Workloads:

- no hits: random prompts without repetition
- control: the same with caching off in both runs, which shows the precision
- translation: a shared prefix of 341 tokens, as in the five-shot case of the PagedAttention paper,
  a question of 30 and an answer of 30
- choice: a prefix of 640 tokens (five examples of 128), a question of 64, an answer of 4

The last two run for a tenth of the rounds.

The machine's speed varies by more than a percent between runs. Without hits the steps are the same,
and caching only adds work to the engine thread. So the additional CPU time of that thread is
reported as a share of the run: an upper bound of the slowdown.
"""

import argparse
import gc
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from jaxserve.bench.datasets import DatasetOptions, random_workload
from jaxserve.bench.environment import LoadMeter, about_line
from jaxserve.bench.machine import describe_machine
from jaxserve.bench.plots import Axes, draw, require_pyplot
from jaxserve.bench.throughput import run_jobs, vocabulary_of
from jaxserve.bench.workload import Job
from jaxserve.offline.llm import LLM

HERE = Path(__file__).parent
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A workload: lengths of shared prefix, own suffix and output, and its target.

    num_at_once: concurrent requests, half of those in a run. at_least: minimum speed with caching
    relative to that without; estimated from the engine thread's CPU time if prompts share nothing.
    is_control: caching stays off.
    """

    name: str
    prefix_len: int
    suffix_len: int
    output_len: int
    num_at_once: int
    at_least: float
    is_control: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of a request at its end."""
        return self.prefix_len + self.suffix_len + self.output_len

    def rounds_of(self, rounds: int) -> int:
        """Return the number of rounds: fewer if less precision is needed."""
        return max(rounds // 10, 1) if self.prefix_len else rounds


NO_HITS = Shape(
    name="no hits", prefix_len=0, suffix_len=128, output_len=32, num_at_once=8, at_least=0.99
)
SHAPES = (
    NO_HITS,
    replace(NO_HITS, name="control", is_control=True),
    Shape(
        name="translation",
        prefix_len=341,
        suffix_len=30,
        output_len=30,
        num_at_once=32,
        at_least=3.0,
    ),
    Shape(name="choice", prefix_len=640, suffix_len=64, output_len=4, num_at_once=32, at_least=3.0),
)


def jobs_of(shape: Shape, llm: LLM, *, seed: int) -> Sequence[Job]:
    """Return requests that no earlier seed has brought."""
    options = DatasetOptions(
        num_prompts=2 * shape.num_at_once,
        seed=seed,
        random_prefix_len=shape.prefix_len,
        random_input_len=shape.suffix_len,
        random_output_len=shape.output_len,
    )
    return random_workload(options, vocabulary_of(llm)).jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """All requests once. host_s: processor time of the engine's thread, which is this one."""

    seconds: float
    host_s: float
    steps: int

    @property
    def host_share(self) -> float:
        """How busy the engine's thread is, which depends less on how fast a machine just is."""
        return self.host_s / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A turn with caching and one without, and the cores that other processes used meanwhile."""

    on: Turn
    off: Turn
    other_cores: float

    @property
    def speed(self) -> float:
        """Speed with caching, as a multiple of that without."""
        return self.off.seconds / self.on.seconds

    @property
    def host_speed(self) -> float:
        """The least that speed can be where the steps are the same, by the thread's own time."""
        return 1 - (self.on.host_share - self.off.host_share)


def run(llm: LLM, jobs: Sequence[Job], *, caches: bool) -> Turn:
    """Run all requests from an empty cache."""
    scheduler = llm._engine.engine.engine._scheduler  # noqa: SLF001  (nobody else switches this)
    scheduler._cache = replace(scheduler._cache, enable_prefix_caching=caches)  # noqa: SLF001
    llm.reset_prefix_cache()
    llm.timeline.recent.clear()
    start_s, start_host_s = time.perf_counter(), time.thread_time()
    run_jobs(llm, jobs, batch=len(jobs))
    return Turn(
        seconds=time.perf_counter() - start_s,
        host_s=time.thread_time() - start_host_s,
        steps=len(llm.timeline.recent),
    )


def measure(llm: LLM, shape: Shape, *, rounds: int) -> list[Round]:
    """Return every round; the first is to warm up and not among them."""
    found: list[Round] = []
    for index in range(rounds + 1):
        jobs = jobs_of(shape, llm, seed=index)
        turns: dict[str, Turn] = {}
        with LoadMeter() as load:
            for side in ("on", "off") if index % 2 else ("off", "on"):
                caches = side == "on" and not shape.is_control
                turns[side] = run(llm, jobs, caches=caches)
        if index:
            new = Round(on=turns["on"], off=turns["off"], other_cores=load.other_cores)
            found.append(new)
            line = f"{shape.name}, round {index}: {new.speed:.3f}, host {new.host_speed:.4f}"
            print(line, file=sys.stderr, flush=True)
    return found


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return a confidence interval of the median of at least 95 %, for any distribution.

    Each round is above or below the median with equal probability. With fewer than 6 rounds the
    interval is from the least to the greatest value, and the confidence is lower.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < count // 2:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 0.05:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def interval(values: Sequence[float]) -> str:
    """Return the median and its interval."""
    low, high = interval_of_median(values)
    return f"**{median(values):.3f}** ({low:.3f} to {high:.3f})"


def summary(shape: Shape, rounds: Sequence[Round]) -> str:
    """Return a row of the table."""
    speeds = [each.speed for each in rounds]
    host_speeds = [] if shape.prefix_len else [each.host_speed for each in rounds]
    low, high = interval_of_median(host_speeds or speeds)
    verdict = "met" if low >= shape.at_least else "missed" if high < shape.at_least else "open"
    return (
        f"| {shape.name} | {shape.prefix_len} + {shape.suffix_len} | {shape.output_len}"
        f" | {shape.num_at_once} | {len(rounds)} | {interval(speeds)}"
        f" | {interval(host_speeds) if host_speeds else ''} | {shape.at_least:g}, {verdict} |"
    )


HEADER = (
    "| workload | tokens in, shared + own | out | at once | rounds | speed with caching (95 %"
    " interval of the median) | by the engine's thread alone | target |"
    "\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=60, metavar="N")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    args = parser.parse_args()
    require_pyplot()
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "max_model_len": max(shape.num_tokens for shape in SHAPES),
        "block_size": PAGE_SIZE,
    }
    load = os.getloadavg()[0]
    dtype = args.dtype  # what "auto" is, once it is known
    measured: dict[Shape, list[Round]] = {}
    for shape in SHAPES:
        num_pages = shape.num_at_once * -(-shape.num_tokens // PAGE_SIZE) * 3 // 2 + 1
        llm = LLM(
            args.model,
            max_num_seqs=shape.num_at_once,
            num_gpu_blocks_override=num_pages,
            warm_up="full",
            report=print,
            **options,
        )
        measured[shape] = measure(llm, shape, rounds=shape.rounds_of(args.rounds))
        dtype = llm.plan.dtype
        del llm
        gc.collect()
    print(HEADER)
    for shape, rounds in measured.items():
        print(summary(shape, rounds))
    model = Path(args.model).name
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": model,
        "dtype": dtype,
        "machine": describe_machine(),
        "load_average_before": load,
        "num_at_once": {shape.name: shape.num_at_once for shape in SHAPES},
        "rounds": {
            shape.name: [
                {**asdict(each), "speed": each.speed, "host_speed": each.host_speed}
                for each in rounds
            ]
            for shape, rounds in measured.items()
        },
    }
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{record['date']}-prefix-caching"
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    diagrams = [
        Axes(
            title=f"{shape.name}: {shape.prefix_len} of {shape.prefix_len + shape.suffix_len}"
            " prompt tokens shared",
            x_label="round",
            y_label="speed, with over without caching",
            lines={"each round": [(i, each.speed) for i, each in enumerate(rounds, 1)]},
            level=(shape.at_least, f"target {shape.at_least:g}"),
        )
        for shape, rounds in measured.items()
    ]
    about = about_line(model)
    title = "What prefix caching costs and gains"
    draw(target.with_suffix(".svg"), diagrams, title=title, about=about)


if __name__ == "__main__":
    main()
