"""Measure how a very long prompt delays decoding streams.

    python -m benchmarks.long_prefill MODEL --prompt-len 32768 --streams 8

First the streams decode alone, which gives the median gap between two tokens. Then they decode
while the engine computes a prompt of --prompt-len tokens. The gaps from its arrival to its first
token are compared with that median and with each other (p99 over p50). Models may be run beyond
their trained context. The script fails if anything is compiled during the measurement.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.long_context import with_context
from jaxserve.bench.environment import LoadMeter, about_line
from jaxserve.bench.machine import describe_machine
from jaxserve.bench.plots import Axes, Style, draw, require_pyplot
from jaxserve.bench.statistics import percentile
from jaxserve.bench.workload import Job
from jaxserve.offline.llm import LLM

HERE = Path(__file__).parent
LONG = "long"
PAGE_SIZE = 16
STREAM_PROMPT = 32
STREAM_TOKENS = 8192  # that each stream has memory for, which is more than it gets to make
MOST_RATIO = 2.0  # p99 over p50 of the gaps under a long prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Seconds between two tokens of a stream, and when they were seen, from the start."""

    times_s: list[float]
    gaps_s: list[float]
    long_ttft_s: float | None
    other_cores: float

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile in milliseconds."""
        return percentile(self.gaps_s, percent) * 1e3


def decode(llm: LLM, jobs: dict[str, Job], *, num_gaps: int | None) -> Gaps:
    """Run jobs until the long prompt has its first token, or until so many gaps were seen."""
    requests = [job.request(name) for name, job in jobs.items()]
    seen_s: dict[str, float] = {}
    times_s: list[float] = []
    gaps_s: list[float] = []
    long_ttft_s = None
    with LoadMeter() as load:
        start_s = time.perf_counter()
        events = llm.run(requests)
        for event in events:
            now_s = time.perf_counter()
            if event.request_id == LONG:
                long_ttft_s = now_s - start_s
                break
            if event.request_id in seen_s:
                times_s.append(now_s - start_s)
                gaps_s.append(now_s - seen_s[event.request_id])
            seen_s[event.request_id] = now_s
            if num_gaps is not None and len(gaps_s) >= num_gaps:
                break
        events.close()
    return Gaps(
        times_s=times_s, gaps_s=gaps_s, long_ttft_s=long_ttft_s, other_cores=load.other_cores
    )


def random_job(draw_from: random.Random, vocab_size: int, length: int, num_tokens: int) -> Job:
    """Return a prompt of random tokens."""
    return Job(tuple(draw_from.choices(range(vocab_size), k=length)), num_tokens)


def table(alone: Gaps, under: Gaps, prompt_len: int) -> str:
    """Return both as Markdown."""
    lines = ["| streams decode | p50 ms | p90 ms | p99 ms | p99 / p50 |", "|---|---|---|---|---|"]
    for name, gaps in (("alone", alone), (f"while {prompt_len} tokens are read", under)):
        p50, p90, p99 = (gaps.percentile_ms(percent) for percent in (50, 90, 99))
        lines.append(f"| {name} | {p50:.1f} | {p90:.1f} | {p99:.1f} | {p99 / p50:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--prompt-len", type=int, default=32768, metavar="TOKENS")
    parser.add_argument("--streams", type=int, default=8, metavar="N")
    parser.add_argument("--max-num-batched-tokens", type=int, metavar="TOKENS")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    args = parser.parse_args()
    require_pyplot()
    load = os.getloadavg()[0]
    longest = args.prompt_len + 16
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "max_num_seqs": args.streams + 1,
        "max_model_len": longest,
        "block_size": PAGE_SIZE,
        "num_gpu_blocks_override": (longest + args.streams * STREAM_TOKENS) // PAGE_SIZE,
    }
    if args.max_num_batched_tokens is not None:
        options["max_num_batched_tokens"] = args.max_num_batched_tokens
    with with_context(args.model, longest) as folder:
        llm = LLM(str(folder), enable_prefix_caching=False, warm_up="full", report=say, **options)
    vocab_size, source = llm.plan.model.vocab_size, random.Random(0)
    # Streams that outlast the long prompt, whatever it takes.
    lasting = longest - STREAM_PROMPT - 1
    streams = {
        str(i): random_job(source, vocab_size, STREAM_PROMPT, lasting) for i in range(args.streams)
    }
    long_job = {LONG: random_job(source, vocab_size, args.prompt_len, 8)}
    decode(llm, streams, num_gaps=8 * args.streams)  # to warm up
    alone = decode(llm, streams, num_gaps=200 * args.streams)
    say(f"alone: p50 {alone.percentile_ms(50):.1f} ms")
    under = decode(llm, streams | long_job, num_gaps=None)
    assert llm.num_compilations == 0, "a program was compiled while the clock ran"
    print(table(alone, under, args.prompt_len))
    print(f"first token of the long prompt after {under.long_ttft_s:.1f} s")
    write(llm, args, alone, under, load)


def write(llm: LLM, args: argparse.Namespace, alone: Gaps, under: Gaps, load: float) -> None:
    """Write data and plot."""
    model = args.model.resolve().name
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": model,
        "dtype": llm.plan.dtype,
        "machine": describe_machine(),
        "load_average_before": load,
        "prompt_len": args.prompt_len,
        "streams": args.streams,
        "compilations": llm.num_compilations,
        "max_num_batched_tokens": llm.plan.scheduler.max_num_batched_tokens,
        "alone": asdict(alone),
        "under": asdict(under),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{record['date']}-long-prefill"
    target.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    percents = [0, 10, 25, 50, 75, 90, 95, 99, 99.9]

    def curve(gaps: Gaps) -> Sequence[tuple[float, float]]:
        return [(percent, gaps.percentile_ms(percent)) for percent in percents]

    points = zip(under.times_s, under.gaps_s, strict=True)
    limit = MOST_RATIO * under.percentile_ms(50)
    diagrams = [
        Axes(
            title="Gaps by percentile",
            x_label="percentile of gaps",
            y_label="time between tokens (ms)",
            lines={"alone": curve(alone), "long prompt being read": curve(under)},
            level=(limit, f"{MOST_RATIO:g} times the median"),
        ),
        Axes(
            title=f"While {args.prompt_len} tokens are read",
            x_label="since the prompt came (s)",
            y_label="time between tokens (ms)",
            lines={"each gap": [(at_s, gap_s * 1e3) for at_s, gap_s in points]},
            style=Style.POINTS,
        ),
    ]
    about = about_line(model, f"{args.streams} streams")
    title = "Decoding streams under a long prefill"
    draw(target.with_suffix(".svg"), diagrams, title=title, about=about)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
