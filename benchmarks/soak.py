r"""Load a server with clients that disconnect at random, and check for leaks.

    python benchmarks/soak.py --clients 64 --minutes 20 --results benchmarks/results \
        [-- MODEL and further `jaxserve serve` flags]

Starts `jaxserve serve`. Each client sends requests of random kinds and lengths one after the other,
and some disconnect during a stream. At the end the server must be in the same state as after the
first minute, when a CPU's KV pages have been allocated: no running or waiting requests, all pages
free, no additional file descriptors or threads, constant memory, no compilation, and metrics that
match the clients' counts. Exits with 1 otherwise. --results writes and plots memory over time.
"""

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from jaxserve.bench.environment import about_line, describe_host
from jaxserve.bench.plots import Axes, Style, draw, require_pyplot

PROMPTS = (
    "Hello!",
    "What is the capital of France?",
    "What is 7 plus 5?",
    "Tell me a short story about a cat.",
    "What is jaxserve?",
)
SETTLE_S = 30.0
SAMPLE_S = 2.0


@dataclass
class Seen:
    """Observations of the clients."""

    finished: Counter[str] = field(default_factory=Counter[str])  # by finish_reason
    num_left: int = 0
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list[str])

    @property
    def num_requests(self) -> int:
        """Requests that were sent and accepted."""
        return self.finished.total() + self.num_left


@dataclass(frozen=True)
class Footprint:
    """Resources of the processes of a server."""

    rss_mib: float
    num_fds: int
    num_threads: int

    @staticmethod
    def of(process: psutil.Process) -> "Footprint":
        """Measure a process and its children now."""
        family = [process, *process.children(recursive=True)]
        return Footprint(
            rss_mib=sum(each.memory_info().rss for each in family) / 2**20,
            num_fds=sum(each.num_fds() for each in family),
            num_threads=sum(each.num_threads() for each in family),
        )


async def watch(process: psutil.Process, samples: list[tuple[float, Footprint]]) -> None:
    """Measure a process every SAMPLE_S seconds, until cancelled."""
    start_s = time.monotonic()
    while True:
        samples.append((time.monotonic() - start_s, Footprint.of(process)))
        await asyncio.sleep(SAMPLE_S)


def random_body(rng: random.Random) -> dict[str, Any]:
    """Draw a request of some kind: every variant of the step is in the mixture."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": rng.choice(PROMPTS) * rng.randint(1, 8)}],
        "max_tokens": rng.randint(1, 120),
        "temperature": rng.choice((0.0, 0.0, 0.7, 1.0)),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    extras: tuple[dict[str, Any], ...] = (
        {},
        {},
        {"top_p": 0.9, "top_k": 20},
        {"logprobs": True, "top_logprobs": 3},
        {"presence_penalty": 0.5, "seed": rng.randint(0, 99)},
        {"min_tokens": 1, "bad_words": ["cat"], "ignore_eos": True},
        {"stop": ["."]},
    )
    return body | rng.choice(extras)


async def run_client(
    http: httpx.AsyncClient, rng: random.Random, seen: Seen, *, until_s: float, leaves: float
) -> None:
    """Send requests until the time is up; leave the share `leaves` of them in mid-stream."""
    while time.monotonic() < until_s:
        last_chunk = rng.randint(1, 20) if rng.random() < leaves else None
        try:
            await run_request(http, random_body(rng), seen, last_chunk=last_chunk)
        except httpx.HTTPError as error:
            seen.errors.append(repr(error))


async def run_request(
    http: httpx.AsyncClient, body: dict[str, Any], seen: Seen, *, last_chunk: int | None
) -> None:
    """Stream one answer, to its end or up to a chunk."""
    reason: str | None = None
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            seen.errors.append(f"{response.status_code} {await response.aread()!r}")
            return
        num_chunks = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                seen.finished[str(reason)] += 1
                return
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                seen.errors.append(line)
                return
            for choice in chunk["choices"]:
                reason = choice["finish_reason"] or reason
            if chunk.get("usage"):
                seen.num_tokens += chunk["usage"]["completion_tokens"]
            num_chunks += 1
            if num_chunks == last_chunk:
                seen.num_left += 1
                return
        seen.errors.append("a stream ended without [DONE]")


async def read_metrics(http: httpx.AsyncClient) -> dict[str, float]:
    """Return every sample of /metrics by its name, with `finished_reason` where it has one."""
    text = (await http.get("/metrics")).text
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            reason = sample.labels.get("finished_reason")
            name = sample.name if reason is None else f"{sample.name}:{reason}"
            samples[name] = samples.get(name, 0.0) + sample.value
    return samples


async def wait_until_idle(http: httpx.AsyncClient) -> dict[str, float]:
    """Wait until nothing runs or waits, or SETTLE_S are over; return the metrics then."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        metrics = await read_metrics(http)
        busy = metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]
        if busy == 0 or time.monotonic() > until_s:
            return metrics
        await asyncio.sleep(0.2)


async def load(
    http: httpx.AsyncClient, seen: Seen, *, clients: int, seconds: float, leaves: float, seed: int
) -> None:
    """Run all clients at once for some seconds."""
    until_s = time.monotonic() + seconds
    await asyncio.gather(
        *(
            run_client(http, random.Random(seed + i), seen, until_s=until_s, leaves=leaves)
            for i in range(clients)
        )
    )


async def soak(args: argparse.Namespace, process: psutil.Process, base_url: str) -> list[str]:
    """Warm up, load, and return what is wrong afterwards."""
    limits = httpx.Limits(max_connections=args.clients + 4)
    async with httpx.AsyncClient(base_url=base_url, timeout=120.0, limits=limits) as http:
        await wait_until_ready(http, process)
        seen = Seen()
        # The first minute of load fills caches and pools that rightly stay.
        await load(http, seen, clients=args.clients, seconds=args.warm_up, leaves=0.3, seed=0)
        await wait_until_idle(http)
        before = Footprint.of(process)
        began_s = time.monotonic()
        samples: list[tuple[float, Footprint]] = []
        watching = asyncio.create_task(watch(process, samples))
        await load(
            http, seen, clients=args.clients, seconds=60 * args.minutes, leaves=0.3, seed=1000
        )
        watching.cancel()
        metrics = await wait_until_idle(http)
        seconds = time.monotonic() - began_s
        after = Footprint.of(process)

    print(f"{seen.num_requests} requests, {seen.num_left} left in mid-stream, in {seconds:.0f} s")
    print(f"before {before}\nafter  {after}")
    print(f"{metrics['jaxserve:compilations_total']:.0f} programs compiled that none had planned")
    if args.results is not None:
        write(args, samples, num_requests=seen.num_requests)
    return [*judge_metrics(metrics, seen), *judge_footprint(before, after)]


def write(
    args: argparse.Namespace, samples: Sequence[tuple[float, Footprint]], *, num_requests: int
) -> None:
    """Write the footprint over time, and draw its memory."""
    about = f"{args.clients} clients, {num_requests} requests"
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "serve": args.serve,
        "clients": args.clients,
        "requests": num_requests,
        "machine": describe_host(),
        "samples": [{"time_s": time_s, **asdict(held)} for time_s, held in samples],
    }
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{record['date']}-soak"
    target.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    memory = Axes(
        title="Memory of the server",
        x_label="time under load (minutes)",
        y_label="resident set (MiB)",
        lines={"server": [(time_s / 60, held.rss_mib) for time_s, held in samples]},
        style=Style.LINES,
    )
    draw(
        target.with_suffix(".svg"), [memory], title="Memory at saturation", about=about_line(about)
    )


def judge_metrics(metrics: dict[str, float], seen: Seen) -> list[str]:
    """Say where the server's count differs from the clients', or something is still going on."""
    prefix = "vllm:request_success_total:"
    finished = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
    print(f"clients saw {dict(seen.finished)}, the server counted {finished}")
    wrong = [f"a client got {error}" for error in seen.errors[:10]]
    wrong += [
        f"{name} is {metrics[f'vllm:{name}']} with nothing to do"
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        if metrics[f"vllm:{name}"] != 0
    ]
    if sum(finished.values()) != seen.num_requests:
        wrong.append(f"{sum(finished.values()):.0f} requests counted, {seen.num_requests} sent")
    if finished.get("abort", 0.0) > seen.num_left:
        wrong.append("more requests were aborted than clients left")
    if metrics["vllm:generation_tokens_total"] < seen.num_tokens:
        wrong.append("fewer tokens were counted than clients got")
    if metrics["jaxserve:compilations_total"] != 0:
        wrong.append(f"{metrics['jaxserve:compilations_total']:.0f} programs compiled under load")
    return wrong


def judge_footprint(before: Footprint, after: Footprint) -> list[str]:
    """Say what a process holds more of than it did."""
    wrong = []
    if after.rss_mib > before.rss_mib * 1.05 + 20:
        wrong.append(f"memory grew from {before.rss_mib:.0f} to {after.rss_mib:.0f} MiB")
    if after.num_fds > before.num_fds + 2:
        wrong.append(f"file descriptors grew from {before.num_fds} to {after.num_fds}")
    if after.num_threads > before.num_threads + 4:
        wrong.append(f"threads grew from {before.num_threads} to {after.num_threads}")
    return wrong


async def wait_until_ready(http: httpx.AsyncClient, process: psutil.Process) -> None:
    """Wait for /ready as long as the server lives."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            if (await http.get("/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the server has stopped before it was ready")


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write data and plot there")
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds of load not judged")
    parser.add_argument("serve", nargs="*", help="model and flags for `jaxserve serve`")
    args = parser.parse_args()
    if args.results is not None:
        require_pyplot()
    port = free_port()
    program = str(Path(sys.executable).with_name("jaxserve"))
    # Compile everything first, because programs take memory.
    command = [program, "serve", "--port", str(port), "--warm-up", "full", *args.serve]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            base_url = f"http://127.0.0.1:{port}"
            wrong = asyncio.run(soak(args, psutil.Process(server.pid), base_url))
        finally:
            server.terminate()
        status = server.wait(timeout=60)
    if status != 0:
        wrong.append(f"the server exited with {status}")
    for line in wrong:
        print(f"WRONG: {line}")
    print("nothing was left behind" if not wrong else f"{len(wrong)} things are wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
