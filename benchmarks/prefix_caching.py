"""Measures what prefix caching costs where it cannot help, and what it gains where it can.

    python -m benchmarks.prefix_caching MODEL --rounds 15 --results benchmarks/results

Two engines in this process hold the same model, one with prefix caching and one without, and take
turns on the same requests, each first every other time; what counts is the ratio of such a pair.
The pool of pages holds a workload and a half, so that with caching there is always something to
evict. Three workloads:

no hits: random prompts, none of which ever comes again. translation: a prefix of 341 tokens that
all share, which is the five-shot one of the PagedAttention paper, a question of 30 and an answer of
30. choice: a prefix of 640 tokens, five examples of 128, a question of 64, an answer of 4.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from jaxserve.bench.datasets import DatasetOptions, random_workload
from jaxserve.bench.environment import LoadMeter, about_line
from jaxserve.bench.machine import describe_machine
from jaxserve.bench.plots import Axes, draw, require_pyplot
from jaxserve.bench.statistics import percentile
from jaxserve.bench.throughput import run_jobs, vocabulary_of
from jaxserve.bench.workload import Job
from jaxserve.llm import LLM

HERE = Path(__file__).parent
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A workload: tokens shared by all prompts, tokens of each, tokens generated; and its target.

    at_least: the least speed with caching, as a multiple of that without.
    """

    name: str
    prefix_len: int
    suffix_len: int
    output_len: int
    at_least: float

    @property
    def num_tokens(self) -> int:
        """Tokens of a request at its end."""
        return self.prefix_len + self.suffix_len + self.output_len


SHAPES = (
    Shape(name="no hits", prefix_len=0, suffix_len=128, output_len=32, at_least=0.99),
    Shape(name="translation", prefix_len=341, suffix_len=30, output_len=30, at_least=3.0),
    Shape(name="choice", prefix_len=640, suffix_len=64, output_len=4, at_least=3.0),
)


def jobs_of(shape: Shape, llm: LLM, *, num_prompts: int, seed: int) -> Sequence[Job]:
    """Return requests that no earlier seed has brought."""
    options = DatasetOptions(
        num_prompts=num_prompts,
        seed=seed,
        random_prefix_len=shape.prefix_len,
        random_input_len=shape.suffix_len,
        random_output_len=shape.output_len,
    )
    return random_workload(options, vocabulary_of(llm)).jobs


def seconds(llm: LLM, jobs: Sequence[Job]) -> float:
    """Return what an engine takes for all of them at once."""
    start_s = time.perf_counter()
    run_jobs(llm, jobs, batch=len(jobs))
    return time.perf_counter() - start_s


def measure(
    engines: dict[str, LLM], shape: Shape, *, num_prompts: int, rounds: int
) -> list[dict[str, float]]:
    """Return the seconds of every round; the first is to warm up and not among them."""
    found: list[dict[str, float]] = []
    for index in range(rounds + 1):
        jobs = jobs_of(shape, engines["on"], num_prompts=num_prompts, seed=index)
        order = ("on", "off") if index % 2 else ("off", "on")
        with LoadMeter() as load:
            took = {name: seconds(engines[name], jobs) for name in order}
        if index:
            speed = took["off"] / took["on"]
            found.append({**took, "speed": speed, "other_cores": load.other_cores})
            print(f"{shape.name}, round {index}: {speed:.3f}", file=sys.stderr, flush=True)
    return found


def summary(shape: Shape, rounds: Sequence[dict[str, float]]) -> str:
    """Return a row of the table."""
    speeds = [each["speed"] for each in rounds]
    low, high = percentile(speeds, 25), percentile(speeds, 75)
    verdict = "met" if median(speeds) >= shape.at_least else "missed"
    shares = f"{shape.prefix_len} + {shape.suffix_len} | {shape.output_len}"
    return (
        f"| {shape.name} | {shares} | **{median(speeds):.3f}** | {low:.3f} to {high:.3f}"
        f" | {shape.at_least:g}, {verdict} |"
    )


HEADER = (
    "| workload | tokens in, shared + own | out | speed with caching | middle half of the rounds |"
    " target |\n|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--num-prompts", type=int, default=32, metavar="N")
    parser.add_argument("--first", choices=("on", "off"), default="on", help="which is made first")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    args = parser.parse_args()
    require_pyplot()
    longest = max(shape.num_tokens for shape in SHAPES)
    largest = args.num_prompts * -(-longest // PAGE_SIZE)
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "max_num_seqs": args.num_prompts,
        "max_model_len": longest,
        "block_size": PAGE_SIZE,
        "num_gpu_blocks_override": largest * 3 // 2,
    }
    load = os.getloadavg()[0]
    engines = {
        name: LLM(
            args.model,
            enable_prefix_caching=name == "on",
            warm_up="full",
            report=print,
            **options,
        )
        for name in (("on", "off") if args.first == "on" else ("off", "on"))
    }
    measured = {
        shape: measure(engines, shape, num_prompts=args.num_prompts, rounds=args.rounds)
        for shape in SHAPES
    }
    print(HEADER)
    for shape, rounds in measured.items():
        print(summary(shape, rounds))
    model = Path(args.model).name
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": model,
        "dtype": engines["on"].plan.dtype,
        "machine": describe_machine(),
        "load_average_before": load,
        "num_prompts": args.num_prompts,
        "rounds": {shape.name: rounds for shape, rounds in measured.items()},
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
            lines={"each round": [(i, each["speed"]) for i, each in enumerate(rounds, 1)]},
            level=(shape.at_least, f"target {shape.at_least:g}"),
        )
        for shape, rounds in measured.items()
    ]
    about = about_line(model, f"{args.num_prompts} requests at once")
    title = "What prefix caching costs and gains"
    draw(target.with_suffix(".svg"), diagrams, title=title, about=about)


if __name__ == "__main__":
    main()
