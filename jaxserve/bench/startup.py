"""Startup benchmark: time from the start of a server process to its first token, by stage."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from jaxserve.bench.statistics import mean, percentile
from jaxserve.errors import JaxserveError

PERCENTS = (10, 25, 50, 75, 90, 99)
START_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start, in seconds from the start of the process.

    ready_s: until the server reports that it listens. first_token_s: until the first token of the
    first request arrives. The server reports the other fields: seconds of stages, bytes per second
    of those that read, and seconds of programs that were ready by then.
    """

    ready_s: float
    first_token_s: float
    stages: Mapping[str, float]
    rates: Mapping[str, float]
    programs: Mapping[str, float]


def measure_start(arguments: Sequence[str], *, cache: Path | None) -> Start:
    """Start `jaxserve serve` in a new process, request a token and stop it.

    cache: folder of the compilation cache, or None for the user's. Raises JaxserveError if the
    server does not start.
    """
    command = [sys.executable, "-m", "jaxserve", "serve", *arguments, "--port", "0"]
    environment = os.environ | ({} if cache is None else {"XDG_CACHE_HOME": str(cache)})
    begin_s = time.perf_counter()
    with _server(command, environment) as (server, log):
        assert server.stdout is not None
        line = server.stdout.readline()
        ready_s = time.perf_counter() - begin_s
        if not line:
            log.seek(0)
            raise JaxserveError(f"{' '.join(command)} did not start:\n{log.read()[-2000:]}")
        url = line.split()[-1]
        model = _get_json(f"{url}/v1/models")["data"][0]["id"]
        body = {"model": model, "prompt": [0], "max_tokens": 1, "ignore_eos": True}
        _get_json(f"{url}/v1/completions", body)
        first_token_s = time.perf_counter() - begin_s
        metrics = _get(f"{url}/metrics").decode()
    stages = labelled_values(metrics, "jaxserve:startup_seconds", "stage")
    num_bytes = labelled_values(metrics, "jaxserve:startup_bytes", "stage")
    return Start(
        ready_s=ready_s,
        first_token_s=first_token_s,
        stages=stages,
        rates={stage: number / stages[stage] for stage, number in num_bytes.items()},
        programs=labelled_values(metrics, "jaxserve:program_seconds", "program"),
    )


def labelled_values(metrics: str, name: str, label: str) -> dict[str, float]:
    """Return the values of a series in /metrics, by the value of a label."""
    return {
        sample.labels[label]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name
    }


def measure_startup(
    arguments: Sequence[str], *, num_cold: int, num_warmup: int, num_warm: int
) -> Iterator[tuple[str, Start]]:
    """Yield cold starts, each with an empty cache, and then warm starts.

    Warm starts share a cache filled by num_warmup earlier starts.
    """
    for _ in range(num_cold):
        with tempfile.TemporaryDirectory() as cache:
            yield "cold", measure_start(arguments, cache=Path(cache))
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(num_warmup if num_warm else 0):
            measure_start(arguments, cache=Path(cache))
        for _ in range(num_warm):
            yield "warm", measure_start(arguments, cache=Path(cache))


def series(starts: Sequence[Start]) -> dict[str, list[float]]:
    """Return the seconds of every start by name: vLLM's name, jaxserve's, and the stages.

    Also has the megabytes per second of stages, and the seconds of programs.
    """
    names = dict.fromkeys(stage for start in starts for stage in start.stages)
    rates = dict.fromkeys(stage for start in starts for stage in start.rates)
    programs = dict.fromkeys(program for start in starts for program in start.programs)
    return {
        "startup": [start.ready_s for start in starts],
        "first_token": [start.first_token_s for start in starts],
        **{name: [start.stages.get(name, 0.0) for start in starts] for name in names},
        **{
            f"{name} MB/s": [start.rates.get(name, 0.0) / 1e6 for start in starts] for name in rates
        },
        **{
            f"program {name}": [start.programs.get(name, 0.0) for start in starts]
            for name in programs
        },
    }


def report(kind: str, starts: Sequence[Start]) -> str:
    """Return lines of text with medians and extremes of one kind of start."""
    lines = [f"{kind.upper()} STARTUP, {len(starts)} starts (seconds)"]
    lines.append(f"  {'':<24}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in series(starts).items():
        figures = (percentile(values, 50), min(values), max(values))
        lines.append(f"  {name:<24}" + "".join(f"{value:>9.2f}" for value in figures))
    return "\n".join(lines)


def fields(kind: str, starts: Sequence[Start]) -> dict[str, Any]:
    """Return the contents of the result file, with vLLM's keys."""
    result: dict[str, Any] = {}
    for name, values in series(starts).items():
        result[f"avg_{kind}_{name}_time"] = mean(values)
        result[f"{kind}_{name}_times"] = values
        result[f"{kind}_{name}_percentiles"] = {str(p): percentile(values, p) for p in PERCENTS}
    return result


@contextmanager
def _server(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run a server within the block. Its log goes to a file, so that no pipe fills up."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(  # noqa: S603  (our own program)
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as server,
    ):
        try:
            yield server, log
            server.send_signal(signal.SIGTERM)
            server.wait(STOP_TIMEOUT_S)
        finally:
            server.kill()


def _get_json(url: str, body: Mapping[str, Any] | None = None) -> Any:
    return json.loads(_get(url, body))


def _get(url: str, body: Mapping[str, Any] | None = None) -> bytes:
    """Send a GET request to a server that is running."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    try:
        with urlopen(request, timeout=START_TIMEOUT_S) as answer:  # noqa: S310
            content: bytes = answer.read()
    except (URLError, ValueError) as error:
        raise JaxserveError(f"{url} did not answer: {error}") from error
    return content
