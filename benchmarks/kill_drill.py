"""Repeatedly kill the processes of a server under load and check that it recovers.

    python -m benchmarks.kill_drill [--rounds 20] [--kinds engine api] [-- MODEL and flags]

Starts `jaxserve serve`, by default with the built-in model, and keeps streams running while /health
is probed continuously on new connections. Each round sends SIGKILL to the processes of its kind. A
round is survived if all processes are running again, /ready answers 200 and every stream gets
tokens. Prints for each kind: rounds survived, the longest time without an answer of /health, the
times until /ready answers 200, how interrupted streams ended, and memory before the first and after
the last round. Exits with 1 if a round was not survived, if a death of the engine cut a stream that
should have ended with an error event, or if memory grew.

No wait in a round may exceed --limit seconds. A kind ends with its first failed round.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil

from benchmarks.background import BackgroundClients
from benchmarks.soak import free_port, read_metrics

HOST = "127.0.0.1"
POLL_S = 0.05
PROBE_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 60.0
MODULES = {"engine": "jaxserve.commands.engine_process", "api": "jaxserve.processes.api"}
MAIN = "main"
# Processes to kill in each step of a kind. The second engine dies while it loads.
KINDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "engine": (("engine",),),
    "api": (("api",),),
    "engine and api": (("engine", "api"),),
    "engine, then the next": (("engine",), ("engine",)),
    "api, then the next": (("api",), ("api",)),
    MAIN: ((MAIN,),),
}
# Allow many deaths with short waits. A KV cache on a CPU that fills up, or background compilation,
# would look like a leak. Flags given by the user override these.
FLAGS = (
    *("--max-restarts", "1000", "--restart-window", "1", "--restart-delay", "0.1"),
    *("--num-gpu-blocks-override", "1024", "--warm-up", "full"),
)


class DrillError(Exception):
    """A round was not survived."""


@dataclass(kw_only=True)
class Seen:
    """Observations of clients in a round. flowing: streams with tokens since its start."""

    ends: Counter[str] = field(default_factory=Counter[str])
    flowing: set[int] = field(default_factory=set[int])
    health_gap_s: float = 0.0
    answered_s: float = field(default_factory=time.monotonic)


class Clients(BackgroundClients):
    """Streams without end, and a probe of /health."""

    def __init__(self, url: str, *, num_streams: int) -> None:
        super().__init__(url, num_streams=num_streams)
        self.seen = Seen()

    @property
    def all_flow(self) -> bool:
        """Whether every stream got tokens in this round."""
        return len(self.seen.flowing) == self._num_streams

    async def _stream(self, number: int) -> None:
        while True:
            end = await self._run_stream(number)
            self.seen.ends[end] += 1
            if end != "whole":
                await asyncio.sleep(POLL_S)

    async def _run_stream(self, number: int) -> str:
        """Stream one answer, on a connection of its own, and return how it ended."""
        body = {"prompt": f"{number} ", "max_tokens": 400, "ignore_eos": True, "stream": True}
        has_begun = False
        try:
            async with (
                httpx.AsyncClient(base_url=self._url, timeout=60.0) as http,
                http.stream("POST", "/v1/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    return "refused"
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        return "whole"
                    if line.startswith('data: {"error"'):
                        return "error event"
                    if line:
                        has_begun = True
                        self.seen.flowing.add(number)
        except httpx.TransportError:
            pass
        return "cut" if has_begun else "refused"

    async def _probe(self) -> None:
        while True:
            try:
                async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S) as http:
                    await http.get(f"{self._url}/health")
            except httpx.TransportError:
                pass
            else:
                now_s = time.monotonic()
                gap_s = now_s - self.seen.answered_s
                self.seen.health_gap_s = max(self.seen.health_gap_s, gap_s)
                self.seen.answered_s = now_s
            await asyncio.sleep(POLL_S)


class Victim:
    """A server whose processes are killed, started again when its main process was."""

    def __init__(self, flags: Sequence[str], log: Path | None) -> None:
        self.port = free_port()
        program = str(Path(sys.executable).with_name("jaxserve"))
        self._command = [program, "serve", "--port", str(self.port), *FLAGS, *flags]
        self._log = log
        self.start()

    def start(self) -> None:
        """Start the server."""
        with Path("/dev/null" if self._log is None else self._log).open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=log)
        self._main = psutil.Process(self._process.pid)

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://{HOST}:{self.port}"

    @property
    def status(self) -> int | None:
        """The exit status of the main process, None while it runs."""
        return self._process.poll()

    def family(self) -> dict[str, list[psutil.Process]]:
        """Return the living processes by kind."""
        found: dict[str, list[psutil.Process]] = {MAIN: [self._main], "engine": [], "api": []}
        for child in self._main.children():
            try:
                command = child.cmdline()
            except psutil.NoSuchProcess:
                continue
            for kind, module in MODULES.items():
                if module in command:
                    found[kind].append(child)
        return found

    def memory_mib(self) -> dict[str, float]:
        """Return the resident memory of the processes by kind."""
        return {
            kind: sum(each.memory_info().rss for each in processes) / 2**20
            for kind, processes in self.family().items()
        }

    def stop(self) -> int:
        """Stop the server with SIGTERM and return its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


@dataclass(kw_only=True)
class Report:
    """Results of a kind. ready_s: by round, from the last death to /ready. memory: by kind."""

    kind: str
    num_rounds: int
    ready_s: list[float] = field(default_factory=list[float])
    health_gap_s: float = 0.0
    num_error_events: int = 0
    num_cut: int = 0
    before_mib: dict[str, float] = field(default_factory=dict[str, float])
    after_mib: dict[str, float] = field(default_factory=dict[str, float])
    misses: list[str] = field(default_factory=list[str])

    def line(self) -> str:
        """Return it as a row of the table."""
        ready = "never"
        if self.ready_s:
            ready = f"{median(self.ready_s):.1f} / {max(self.ready_s):.1f} s"
        memory = "  ".join(
            f"{kind} {mib:.0f} -> {self.after_mib.get(kind, 0.0):.0f}"
            for kind, mib in self.before_mib.items()
        )
        return (
            f"{self.kind:<24}{len(self.ready_s):>4} of {self.num_rounds:<4}"
            f"{self.health_gap_s:>8.1f} s{ready:>20}{self.num_error_events:>9}{self.num_cut:>6}"
            f"  {'MISS' if self.misses else 'ok':<6}{memory}"
        )


class Drill:
    """Kills the processes of one server. limit_s: how long anything in a round may take."""

    def __init__(self, victim: Victim, clients: Clients, *, limit_s: float) -> None:
        self._victim = victim
        self._clients = clients
        self._limit_s = limit_s

    async def run(self, kind: str, num_rounds: int, *, memory_limit_mib: float) -> Report:
        """Run the rounds of a kind, up to the first that fails."""
        report = Report(kind=kind, num_rounds=num_rounds)
        num_restarts = await self._num_restarts()
        try:
            for number in range(num_rounds):
                await self._round(kind, report)
                if number == 0:  # what every process holds that was started under load
                    report.before_mib = self._victim.memory_mib()
            report.after_mib = self._victim.memory_mib()
            num_restarts = await self._num_restarts() - num_restarts
            num_kills = num_rounds * sum(map(len, KINDS[kind]))
            if kind != MAIN and num_restarts != num_kills:
                report.misses.append(f"{num_kills} deaths counted as {num_restarts} restarts")
        except DrillError as error:
            report.misses.append(f"round {len(report.ready_s) + 1}: {error}")
        grown_mib = sum(report.after_mib.values()) - sum(report.before_mib.values())
        if report.after_mib and grown_mib > memory_limit_mib:
            report.misses.append(f"memory grew by {grown_mib:.0f} MiB")
        if kind == "engine" and report.num_cut:
            report.misses.append(f"{report.num_cut} streams ended without an error event")
        return report

    async def _round(self, kind: str, report: Report) -> None:
        self._clients.seen = Seen()
        await self._until(lambda: self._clients.all_flow, "streams get no tokens")
        seen = self._clients.seen = Seen()
        killed: set[int] = set()
        for step in KINDS[kind]:
            await self._until_there(step, killed)
            for each in step:
                killed |= await self._kill(each, killed)
        killed_s = time.monotonic()
        await self._until_ready(killed)
        report.ready_s.append(time.monotonic() - killed_s)
        seen.flowing.clear()
        await self._until(lambda: self._clients.all_flow, "streams get no tokens afterwards")
        report.health_gap_s = max(report.health_gap_s, seen.health_gap_s)
        report.num_error_events += seen.ends["error event"]
        report.num_cut += seen.ends["cut"]

    async def _num_restarts(self) -> int:
        async with httpx.AsyncClient(base_url=self._victim.url, timeout=60.0) as http:
            return round((await read_metrics(http))["jaxserve:process_restarts_total"])

    def _others(self, kind: str, killed: set[int]) -> list[psutil.Process]:
        """Return the processes of a kind that were not killed in this round."""
        return [each for each in self._victim.family()[kind] if each.pid not in killed]

    async def _kill(self, kind: str, killed: set[int]) -> set[int]:
        """Kill the first process of a kind; return its id."""
        victim = self._others(kind, killed)[0]
        children = victim.children(recursive=True)
        victim.kill()
        if kind == MAIN:
            await self._until_gone(children)
            self._victim.stop()  # reaps it
            self._victim.start()
        return {victim.pid}

    async def _until_gone(self, children: Sequence[psutil.Process]) -> None:
        until_s = time.monotonic() + self._limit_s
        while any(map(is_alive, children)):
            if time.monotonic() > until_s:
                raise DrillError("a child outlived the main process")
            await asyncio.sleep(POLL_S)

    def _check_status(self) -> None:
        if self._victim.status is not None:
            raise DrillError(f"the server ended with status {self._victim.status}")

    async def _until_ready(self, killed: set[int]) -> None:
        """Wait until all processes are there and the server is ready."""
        async with httpx.AsyncClient(base_url=self._victim.url, timeout=PROBE_TIMEOUT_S) as http:
            until_s = time.monotonic() + self._limit_s
            while time.monotonic() < until_s:
                self._check_status()
                try:
                    is_ready = (await http.get("/ready")).status_code == 200
                except httpx.TransportError:
                    is_ready = False
                if is_ready and all(self._others(each, killed) for each in (MAIN, *MODULES)):
                    return
                await asyncio.sleep(POLL_S)
        raise DrillError(f"the server was not ready within {self._limit_s:g} s")

    async def _until(self, condition: Callable[[], bool], complaint: str) -> None:
        until_s = time.monotonic() + self._limit_s
        while not condition():
            self._check_status()
            if time.monotonic() > until_s:
                raise DrillError(f"{complaint} for {self._limit_s:g} s")
            await asyncio.sleep(POLL_S)

    async def _until_there(self, kinds: Sequence[str], killed: set[int]) -> None:
        await self._until(
            lambda: all(self._others(each, killed) for each in kinds),
            "a killed process was not replaced",
        )

    async def begin(self) -> None:
        """Wait until the server serves for the first time."""
        await self._until_ready(set())


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def drill(
    kinds: Sequence[str],
    *,
    num_rounds: int = 20,
    num_streams: int = 8,
    limit_s: float = 120.0,
    memory_limit_mib: float = 200.0,
    flags: Sequence[str] = (),
    log: Path | None = None,
) -> list[Report]:
    """Run the drill on a server of its own and return a report for each kind."""
    victim = Victim(flags, log)
    reports: list[Report] = []
    try:
        async with Clients(victim.url, num_streams=num_streams) as clients:
            each = Drill(victim, clients, limit_s=limit_s)
            await each.begin()
            for kind in kinds:
                report = await each.run(kind, num_rounds, memory_limit_mib=memory_limit_mib)
                print(report.line(), *report.misses, sep="\n    ", flush=True)
                reports.append(report)
                if victim.status is not None:
                    break
    finally:
        status = victim.stop()
    if status:
        reports[-1].misses.append(f"the server ended with status {status}")
    return reports


def main() -> int:
    """Run the drill; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a round may take")
    parser.add_argument("--memory-limit", type=float, default=200.0, help="MiB that may stay")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the reports as JSON")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append the server's log here")
    parser.add_argument("serve", nargs="*", help="model and flags for `jaxserve serve`")
    args = parser.parse_args()
    print(
        f"{'killed':<24}{'survived':>12}{'/health gap':>10}{'ready: median / max':>21}"
        f"{'errors':>9}{'cut':>6}  memory in MiB"
    )
    reports = asyncio.run(
        drill(
            args.kinds,
            num_rounds=args.rounds,
            num_streams=args.streams,
            limit_s=args.limit,
            memory_limit_mib=args.memory_limit,
            flags=args.serve,
            log=args.log,
        )
    )
    if args.results is not None:
        args.results.write_text(json.dumps([asdict(each) for each in reports]) + "\n", "utf-8")
    return 1 if any(each.misses for each in reports) or len(reports) < len(args.kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
