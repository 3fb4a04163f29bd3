"""Attack a server and check whether its probes and other clients notice.

    python -m benchmarks.abuse [--attacks "slow headers" connections] [-- MODEL and flags]

Starts `jaxserve serve`, by default with the built-in model, and keeps a few streams running. Each
attack of abuse_attacks.py runs for some seconds in its own process, while /health and /ready are
probed continuously on new connections. Prints for each attack: the slowest probe, the longest gap
between two tokens of the other streams and the usual one, the memory of each process before and
after, and the verdict. Exits with 1 if a probe failed or was late, a stream was delayed or broke, a
process died, or the attack got an answer that should have been refused.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import httpx
import psutil

from benchmarks.abuse_attacks import ATTACKS
from benchmarks.abuse_client import Attack, Target
from benchmarks.background import BackgroundClients
from benchmarks.soak import free_port, wait_until_ready

HOST = "127.0.0.1"
PROBE_INTERVAL_S = 0.05
PROBE_TIMEOUT_S = 10.0
SETTLE_S = 2.0
ROLES = {"engine_process": "engine", "jaxserve.processes.api": "api"}


@dataclass
class Seen:
    """Observations of the other clients during a period."""

    probe_s: float = 0.0
    gap_s: float = 0.0
    num_probes: int = 0
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list[str])


class Bystanders(BackgroundClients):
    """Clients that mean well: streams without end, and probes."""

    def __init__(self, url: str, *, num_streams: int) -> None:
        super().__init__(url, num_streams=num_streams)
        self.seen = Seen()

    async def watch(self, seconds: float) -> Seen:
        """Return what they see from now on for some seconds."""
        self.seen = Seen()
        await asyncio.sleep(seconds)
        return self.seen

    async def _stream(self, number: int) -> None:
        body = {
            "messages": [{"role": "user", "content": f"Tell me story number {number}."}],
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": True,
        }
        async with httpx.AsyncClient(base_url=self._url, timeout=60.0) as http:
            while True:
                try:
                    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                        await self._read(answer)
                except httpx.HTTPError as error:
                    self.seen.errors.append(f"a stream broke: {error!r}")
                    await asyncio.sleep(0.1)

    async def _read(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.seen.errors.append(f"a stream was refused: {answer.status_code}")
            await asyncio.sleep(0.1)
            return
        last_s: float | None = None
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if '"error"' in line:
                self.seen.errors.append(f"a stream ended: {line[:200]}")
            now_s = time.monotonic()
            if last_s is not None:
                self.seen.gap_s = max(self.seen.gap_s, now_s - last_s)
            last_s = now_s
            self.seen.num_tokens += 1

    async def _probe(self) -> None:
        while True:
            for path in ("/health", "/ready"):
                began_s = time.monotonic()
                try:
                    async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S) as http:
                        status = (await http.get(self._url + path)).status_code
                    if status != 200:
                        self.seen.errors.append(f"{path} answered {status}")
                except httpx.HTTPError as error:
                    self.seen.errors.append(f"{path} failed: {error!r}")
                self.seen.probe_s = max(self.seen.probe_s, time.monotonic() - began_s)
                self.seen.num_probes += 1
                await asyncio.sleep(PROBE_INTERVAL_S)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Effect of an attack. usual_probe_s, usual_gap_s: before it. rss_mib: by process."""

    attack: str
    probe_s: float
    gap_s: float
    usual_probe_s: float
    usual_gap_s: float
    rss_before_mib: dict[str, float]
    rss_after_mib: dict[str, float]
    misses: list[str]

    def line(self) -> str:
        """Return it as a row of the report."""
        memory = "  ".join(
            f"{name} {self.rss_before_mib.get(name, 0.0):.0f} -> {mib:.0f}"
            for name, mib in self.rss_after_mib.items()
        )
        verdict = "MISS" if self.misses else "ok"
        return (
            f"{self.attack:<20}{1000 * self.probe_s:>7.0f} ms{1000 * self.usual_probe_s:>7.0f} ms"
            f"{1000 * self.gap_s:>7.0f} ms{1000 * self.usual_gap_s:>7.0f} ms  {verdict:<5}{memory}"
        )


def memory_mib(process: psutil.Process) -> dict[str, float]:
    """Return the resident memory of each process of a server, by its role."""
    memory = {"main": process.memory_info().rss / 2**20}
    for child in process.children():
        command = " ".join(child.cmdline())
        role = next((role for module, role in ROLES.items() if module in command), "other")
        memory[f"{role} {child.pid}"] = child.memory_info().rss / 2**20
    return memory


def execute(name: str, target: Target) -> list[str]:
    """Run an attack in this process and return its complaints."""
    attack = next(each for each in ATTACKS if each.name == name)
    needed = 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))

    async def bounded() -> list[str]:
        return await asyncio.wait_for(attack.run(target), 3 * target.seconds + 30.0)

    try:
        return asyncio.run(bounded())
    except TimeoutError:
        return ["the attack did not come to its end"]


def _world(attack: Attack) -> tuple[tuple[str, ...], int]:
    """Return what tells the server that an attack wants from others'."""
    return attack.flags, attack.max_files or 0


async def trial(
    attack: Attack,
    bystanders: Bystanders,
    process: psutil.Process,
    target: Target,
    args: argparse.Namespace,
) -> Verdict:
    """Run one attack beside the bystanders and judge what they noticed."""
    usual = await bystanders.watch(args.usual_seconds)
    before = memory_mib(process)
    bystanders.seen = seen = Seen()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        loop = asyncio.get_running_loop()
        misses = await loop.run_in_executor(pool, execute, attack.name, target)
    await asyncio.sleep(SETTLE_S)
    after = memory_mib(process)
    misses += sorted(set(seen.errors))[:5]
    if seen.num_probes == 0:
        misses.append("no probe was answered")
    if seen.probe_s > args.probe_limit:
        misses.append(f"a probe took {seen.probe_s:.3f} s, more than {args.probe_limit} s")
    limit_s = max(args.gap_floor, args.gap_factor * usual.gap_s)
    if seen.gap_s > limit_s:
        misses.append(f"a stream waited {seen.gap_s:.3f} s for a token, more than {limit_s:.3f} s")
    if before.keys() != after.keys():
        misses.append(f"processes changed from {sorted(before)} to {sorted(after)}")
    grown = sum(after.values()) - sum(before.values())
    if grown > args.memory_limit:
        misses.append(f"memory grew by {grown:.0f} MiB, more than {args.memory_limit:.0f} MiB")
    return Verdict(
        attack=attack.name,
        probe_s=seen.probe_s,
        gap_s=seen.gap_s,
        usual_probe_s=usual.probe_s,
        usual_gap_s=usual.gap_s,
        rss_before_mib=before,
        rss_after_mib=after,
        misses=misses,
    )


async def campaign(
    attacks: Sequence[Attack], process: psutil.Process, port: int, args: argparse.Namespace
) -> list[Verdict]:
    """Run attacks one after the other on a server."""
    url = f"http://{HOST}:{port}"
    target = Target(host=HOST, port=port, seconds=args.seconds)
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as http:
        await wait_until_ready(http, process)
    verdicts = []
    async with Bystanders(url, num_streams=args.streams) as bystanders:
        await asyncio.sleep(SETTLE_S)
        for attack in attacks:
            verdict = await trial(attack, bystanders, process, target, args)
            print(verdict.line(), *(f"    {miss}" for miss in verdict.misses), sep="\n", flush=True)
            verdicts.append(verdict)
    return verdicts


def attack_server(attacks: Sequence[Attack], args: argparse.Namespace) -> list[Verdict]:
    """Start the server that some attacks want, and run them."""
    port = free_port()
    program = str(Path(sys.executable).with_name("jaxserve"))
    command = [program, "serve", "--port", str(port), "--warm-up", "full", *args.serve]
    command += attacks[0].flags
    if attacks[0].max_files is not None:
        command = ["sh", "-c", f'ulimit -n {attacks[0].max_files}; exec "$@"', "sh", *command]
    log = subprocess.DEVNULL if args.log is None else args.log.open("a")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as server:
        try:
            return asyncio.run(campaign(attacks, psutil.Process(server.pid), port, args))
        finally:
            server.terminate()
            server.wait(timeout=60)


def main() -> int:
    """Run the battery; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attacks", nargs="+", choices=[each.name for each in ATTACKS])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of an attack")
    parser.add_argument("--usual-seconds", type=float, default=5.0, help="watched before each")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--probe-limit", type=float, default=0.2, help="seconds a probe may take")
    parser.add_argument("--gap-factor", type=float, default=2.0, help="of the usual longest gap")
    parser.add_argument("--gap-floor", type=float, default=0.1, help="seconds that are always fine")
    parser.add_argument("--memory-limit", type=float, default=400.0, help="MiB that may stay")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the verdicts as JSON")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append the servers' logs here")
    parser.add_argument("serve", nargs="*", help="model and flags for `jaxserve serve`")
    args = parser.parse_args()
    chosen = [each for each in ATTACKS if args.attacks is None or each.name in args.attacks]
    print(
        f"{'attack':<20}{'probe':>10}{'usual':>10}{'gap':>10}{'usual':>10}  verdict, memory in MiB"
    )
    verdicts: list[Verdict] = []
    for _, group in groupby(sorted(chosen, key=_world), key=_world):
        verdicts += attack_server(list(group), args)
    if args.results is not None:
        args.results.write_text(json.dumps([asdict(each) for each in verdicts]) + "\n", "utf-8")
    num_missed = sum(bool(each.misses) for each in verdicts)
    print(f"{len(verdicts) - num_missed} of {len(verdicts)} attacks went unnoticed")
    return 1 if num_missed else 0


if __name__ == "__main__":
    sys.exit(main())
