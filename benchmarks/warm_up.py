"""Measure the effect of background compilation on requests.

    python -m benchmarks.warm_up MODEL --rate 2 --results warm_up.json -- --max-num-seqs 32

Starts `jaxserve serve` with `--warm-up background` and an empty compilation cache, and sends --rate
requests per second at equal distances as soon as it is ready. After the last program is compiled,
the stream continues for twice --seconds. The table has times to the first token and gaps between
tokens, by the newest program when a request was sent. The time after the last program is divided
into two halves, because a background program first runs in a step that needs it. Flags after `--`
are passed to `jaxserve serve`.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxserve.bench.endpoint import ENDPOINTS, Endpoint, Record
from jaxserve.bench.environment import LoadMeter
from jaxserve.bench.http import HttpClient
from jaxserve.bench.machine import describe_machine
from jaxserve.bench.startup import labelled_values
from jaxserve.bench.statistics import percentile
from jaxserve.bench.workload import Job

TAKEN_OVER, AFTER = "all are made", "later"
MAX_S = 900.0


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """Run a server with an empty compilation cache; yield its URL when it is ready."""
    command = [sys.executable, "-m", "jaxserve", "serve", *arguments, "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as cache,
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": cache},
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                log.seek(0)
                raise SystemExit(f"the server did not start:\n{log.read()[-2000:]}")
            yield line.split()[-1]
        finally:
            server.terminate()
            server.wait(60)


async def get(http: HttpClient, path: str) -> bytes:
    """Return the body of an answer."""
    async with http.request("GET", path) as response:
        return await response.read()


async def measure(args: argparse.Namespace, url: str) -> dict[str, list[Record]]:
    """Send requests until long after all programs are made; return what was seen, by phase."""
    source = random.Random(0)
    http = HttpClient(url)
    model = json.loads(await get(http, "/v1/models"))["data"][0]["id"]
    endpoint = Endpoint(
        http=http, backend="openai", path=ENDPOINTS["openai"], model=model, ignore_eos=True
    )
    records: dict[str, list[Record]] = {}

    async def ask(phase: str) -> None:
        prompt = tuple(source.choices(range(10, args.vocab_size), k=args.input_len))
        records[phase].append(await endpoint.ask(endpoint.body(Job(prompt, args.output_len))))

    begin_s = time.monotonic()
    made_s: float | None = None
    phase = ""
    num_sent = 0
    async with asyncio.TaskGroup() as group:
        while made_s is None or time.monotonic() < made_s + 2 * args.seconds:
            now_s = time.monotonic()
            assert now_s < begin_s + MAX_S, "the programs are not made in time"
            if made_s is None:
                metrics = (await get(http, "/metrics")).decode()
                *_, newest = labelled_values(metrics, "jaxserve:program_seconds", "program")
                phase = f"while {newest} is newest"
                if "all programs" in labelled_values(metrics, "jaxserve:startup_seconds", "stage"):
                    made_s, phase = now_s, TAKEN_OVER
            elif now_s > made_s + args.seconds:
                phase = AFTER
            records.setdefault(phase, [])  # keep the order of phases
            group.create_task(ask(phase))
            num_sent += 1
            await asyncio.sleep(max(0.0, begin_s + num_sent / args.rate - time.monotonic()))
    metrics = (await get(http, "/metrics")).decode()
    unplanned = labelled_values(metrics, "jaxserve:compilations_total", "model_name")
    assert set(unplanned.values()) == {0.0}, f"compilations that none had planned: {unplanned}"
    programs = labelled_values(metrics, "jaxserve:program_seconds", "program")
    print(f"{len(programs)} programs took {sum(programs.values()):.1f} s, one after the other")
    http.close()
    return records


def table(records: dict[str, list[Record]]) -> str:
    """Return all phases as Markdown."""
    lines = [
        "| requests sent | number | TTFT p50 ms | p99 | gap p50 ms | p99 | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase, found in records.items():
        good = [record for record in found if record.error is None]
        ttfts = [record.ttft_s for record in good]
        gaps = [gap_s for record in good for gap_s in record.itls_s]
        if not gaps:
            lines.append(f"| {phase} | 0 | | | | | |")
            continue
        values = [percentile(ttfts, 50), percentile(ttfts, 99)]
        values += [percentile(gaps, 50), percentile(gaps, 99), max(gaps)]
        cells = " | ".join(f"{1e3 * value:.1f}" for value in values)
        lines.append(f"| {phase} | {len(good)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--input-len", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--output-len", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--vocab-size", type=int, default=500, help="random prompts are below it")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase after")
    parser.add_argument("--results", type=Path, metavar="FILE")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, flags = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    with LoadMeter() as load, serving([args.model, "--warm-up", "background", *flags]) as url:
        records = asyncio.run(measure(args, url))
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{args.model} {' '.join(flags)}, {args.rate:g} requests per second")
    print(table(records))
    errors = [record.error for found in records.values() for record in found if record.error]
    if args.results is not None:
        record: dict[str, Any] = {
            "model": args.model,
            "flags": flags,
            "rate": args.rate,
            "machine": machine,
            "other_cores": load.other_cores,
            "records": {
                phase: [asdict(each) for each in found] for phase, found in records.items()
            },
        }
        args.results.write_text(json.dumps(record) + "\n", encoding="utf-8")
    if errors:
        raise SystemExit(f"{len(errors)} requests failed, the first with {errors[0]}")


if __name__ == "__main__":
    main()
