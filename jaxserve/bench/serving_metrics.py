"""Metrics of a serving benchmark, with vLLM's definitions and names."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jaxserve.bench.endpoint import Record
from jaxserve.bench.statistics import deviation, mean, percent_word, percentile
from jaxserve.errors import ConfigError

WIDTH = 50
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
# By vLLM's key: name in a line, and heading.
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
}


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """Parse limits such as ttft:200, in milliseconds. Raises ConfigError."""
    limits: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            limits[name] = float(text)
        except ValueError as error:
            raise ConfigError(
                f"goodput must be like ttft:200 (milliseconds), got {pair}"
            ) from error
        if name not in GOODPUT_METRICS:
            raise ConfigError(f"goodput must name one of {', '.join(GOODPUT_METRICS)}, got {name}")
        if limits[name] < 0:
            raise ConfigError(f"goodput must not be negative, got {pair}")
    return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMetrics:
    """Metrics of all requests of a run that took duration_s; times in seconds.

    Failed requests are only counted as failed. TPOT exists for answers of at least two tokens. A
    chunk with several tokens has one ITL, the gap before it.
    """

    duration_s: float
    completed: int
    failed: int
    num_input: int
    num_output: int
    num_good: int
    peak_tokens_per_s: float
    peak_concurrency: int
    values: Mapping[str, Sequence[float]]

    @staticmethod
    def of(
        records: Sequence[Record], duration_s: float, *, goodput: Mapping[str, float]
    ) -> "ServingMetrics":
        """Compute the metrics. goodput: limits of a good request in milliseconds."""
        done = [record for record in records if record.error is None]
        tpots = [record.tpot_s for record in done]
        return ServingMetrics(
            duration_s=duration_s,
            completed=len(done),
            failed=len(records) - len(done),
            num_input=sum(record.num_prompt for record in done),
            num_output=sum(record.num_output for record in done),
            num_good=sum(is_good(record, goodput) for record in done),
            peak_tokens_per_s=peak_tokens_per_s(done),
            peak_concurrency=peak_concurrency(done),
            values={
                "ttft": [record.ttft_s for record in done],
                "tpot": [tpot for tpot in tpots if tpot is not None],
                "itl": [gap for record in done for gap in record.itls_s],
                "e2el": [record.latency_s for record in done],
                "client_queue_time": [record.queue_s for record in done],
            },
        )

    def figures(
        self, names: Sequence[str], percents: Sequence[float]
    ) -> dict[str, dict[str, float]]:
        """Return mean, median, std and percentiles in milliseconds, for each name."""
        table: dict[str, dict[str, float]] = {}
        for name in names:
            values = self.values[name]
            table[name] = {
                "mean": mean(values) * 1e3,
                "median": percentile(values, 50) * 1e3,
                "std": deviation(values) * 1e3,
            } | {f"p{percent_word(p)}": percentile(values, p) * 1e3 for p in percents}
        return table

    def report(
        self,
        names: Sequence[str],
        percents: Sequence[float],
        *,
        max_concurrency: int | None = None,
        request_rate: float = math.inf,
        has_goodput: bool = False,
    ) -> str:
        """Return vLLM's block of lines."""
        lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]

        def add(label: str, value: float, *, is_count: bool = False) -> None:
            lines.append(f"{label:<40} {value:<10}" if is_count else f"{label:<40} {value:<10.2f}")

        add("Successful requests:", self.completed, is_count=True)
        add("Failed requests:", self.failed, is_count=True)
        if max_concurrency is not None:
            add("Maximum request concurrency:", max_concurrency, is_count=True)
        if request_rate < math.inf:
            add("Request rate configured (RPS):", request_rate)
        add("Benchmark duration (s):", self.duration_s)
        add("Total input tokens:", self.num_input, is_count=True)
        add("Total generated tokens:", self.num_output, is_count=True)
        add("Request throughput (req/s):", self.completed / self.duration_s)
        if has_goodput:
            add("Request goodput (req/s):", self.num_good / self.duration_s)
        add("Output token throughput (tok/s):", self.num_output / self.duration_s)
        add("Peak output token throughput (tok/s):", self.peak_tokens_per_s)
        add("Peak concurrent requests:", self.peak_concurrency)
        add("Total token throughput (tok/s):", (self.num_input + self.num_output) / self.duration_s)
        for name, figures in self.figures(names, percents).items():
            word, heading = TITLES[name]
            lines.append(f"{heading:-^{WIDTH}}")
            for figure, value in figures.items():
                if figure != "std":
                    add(f"{figure.capitalize()} {word} (ms):", value)
        return "\n".join([*lines, "=" * WIDTH])

    def fields(
        self, names: Sequence[str], percents: Sequence[float], *, has_goodput: bool = False
    ) -> dict[str, Any]:
        """Return the contents of the result file, with vLLM's keys."""
        return {
            "duration": self.duration_s,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.num_input,
            "total_output_tokens": self.num_output,
            "request_throughput": self.completed / self.duration_s,
            "request_goodput": self.num_good / self.duration_s if has_goodput else None,
            "output_throughput": self.num_output / self.duration_s,
            "total_token_throughput": (self.num_input + self.num_output) / self.duration_s,
            "max_output_tokens_per_s": self.peak_tokens_per_s,
            "max_concurrent_requests": self.peak_concurrency,
            **{
                f"{figure}_{name}_ms": value
                for name, figures in self.figures(names, percents).items()
                for figure, value in figures.items()
            },
        }


def request_fields(records: Sequence[Record]) -> dict[str, Any]:
    """Return the fields of `--save-detailed`: lists with one entry per request, in order."""
    is_done = [record.error is None for record in records]
    return {
        "input_lens": [record.num_prompt for record in records],
        "output_lens": [record.num_output for record in records],
        "start_times": [record.start_s for record in records],
        "queue_times": [record.queue_s for record in records],
        "ttfts": [r.ttft_s if done else 0.0 for r, done in zip(records, is_done, strict=True)],
        "itls": [record.itls_s for record in records],
        "latencies": [
            r.latency_s if done else 0.0 for r, done in zip(records, is_done, strict=True)
        ],
        "generated_texts": ["".join(record.texts) for record in records],
        "errors": [record.error or "" for record in records],
    }


def is_good(record: Record, limits_ms: Mapping[str, float]) -> bool:
    """Whether a request is within all limits. The TPOT of a single token is 0."""
    took_s = {"ttft": record.ttft_s, "tpot": record.tpot_s or 0.0, "e2el": record.latency_s}
    return all(took_s[name] * 1e3 <= limit for name, limit in limits_ms.items())


def peak_tokens_per_s(records: Sequence[Record]) -> float:
    """Return the tokens of the best second. Each chunk counts for an equal share of its answer."""
    if not records:
        return 0.0
    begin_s = min(record.start_s for record in records)
    per_second: defaultdict[int, float] = defaultdict(float)
    for record in records:
        share = record.num_output / len(record.times_s)
        for time_s in record.times_s:
            per_second[int(time_s - begin_s)] += share
    return max(per_second.values())


def peak_concurrency(records: Sequence[Record]) -> int:
    """Return the maximum number of requests in flight at one moment.

    vLLM counts all requests that overlap the same second.
    """
    changes = sorted(
        change
        for record in records
        for change in ((record.start_s, 1), (record.start_s + record.latency_s, -1))
    )
    return max(accumulate(change for _, change in changes), default=0)
