"""`jaxserve bench serve`: measure a server under one or several loads."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import h11
from tqdm import tqdm

from jaxserve.bench.arrivals import Arrivals
from jaxserve.bench.datasets import DatasetOptions, load_dataset
from jaxserve.bench.endpoint import ENDPOINTS, Endpoint
from jaxserve.bench.http import HttpClient
from jaxserve.bench.serving import Run, drive, wait_until_ready, warm_up
from jaxserve.bench.serving_metrics import ServingMetrics
from jaxserve.bench.tokenizers import find_tokenizer, read_vocabulary
from jaxserve.bench.workload import Job, Vocabulary, Workload
from jaxserve.errors import JaxserveError

PROBE = Job((), 1, "Hello")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of `jaxserve bench serve`; see its `--help`.

    path: None selects the backend's. model: None selects the server's first. arrivals,
    concurrencies: each pair is one load. goodput: limits in milliseconds.
    """

    base_url: str
    dataset: DatasetOptions
    backend: str = "openai"
    path: str | None = None
    model: str | None = None
    tokenizer: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    verify: bool = True
    ready_timeout_s: float = 0.0
    arrivals: Sequence[Arrivals] = (Arrivals(),)
    concurrencies: Sequence[int | None] = (None,)
    num_warmups: int = 0
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    goodput: Mapping[str, float] = field(default_factory=dict[str, float])
    show_progress: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load: arrivals of requests, and the maximum number in flight."""

    arrivals: Arrivals
    max_concurrency: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A load and what came of it."""

    model: str
    load: Load
    workload: Workload
    run: Run
    metrics: ServingMetrics


async def measure_server(settings: ServeSettings) -> AsyncGenerator[Point]:
    """Measure the server under each load in turn and yield the results.

    Raises JaxserveError if the server is unreachable or fails the warm-up requests.
    """
    http = HttpClient(settings.base_url, headers=settings.headers, verify=settings.verify)
    try:
        if settings.ready_timeout_s > 0:
            await wait_until_ready(lambda: _problem(http, settings), settings.ready_timeout_s)
        name, root = await find_model(http, settings.model)

        @cache
        def vocabulary() -> Vocabulary:
            names = [settings.tokenizer] if settings.tokenizer is not None else [name, root]
            return read_vocabulary(find_tokenizer([each for each in names if each]))

        endpoint = _endpoint(http, settings, name, lambda ids: vocabulary().decode(ids))
        loads = [
            Load(arrivals=arrivals, max_concurrency=concurrency)
            for arrivals in settings.arrivals
            for concurrency in settings.concurrencies
        ]
        for index, load in enumerate(loads):
            # New prompts for each load, so that the prefix cache has none of them.
            dataset = replace(settings.dataset, seed=settings.dataset.seed + index)
            workload = load_dataset(dataset, vocabulary)
            yield await _measure(endpoint, load, workload, settings, seed=dataset.seed)
    finally:
        http.close()


def _endpoint(
    http: HttpClient,
    settings: ServeSettings,
    model: str,
    decode: Callable[[tuple[int, ...]], str] | None = None,
) -> Endpoint:
    return Endpoint(
        http=http,
        backend=settings.backend,
        path=settings.path or ENDPOINTS[settings.backend],
        model=model,
        decode=decode,
        ignore_eos=settings.ignore_eos,
        extra=dict(settings.extra),
    )


async def _problem(http: HttpClient, settings: ServeSettings) -> str | None:
    """Request one token. Return the error, or None."""
    try:
        name, _ = await find_model(http, settings.model)
    except JaxserveError as error:
        return str(error)
    endpoint = _endpoint(http, settings, name)
    return (await endpoint.ask(endpoint.body(PROBE))).error


async def find_model(http: HttpClient, name: str | None) -> tuple[str, str]:
    """Return a model's name, by default the server's first, and its root.

    The root is empty if the server does not report it.
    """
    try:
        async with http.request("GET", "/v1/models") as response:
            models = json.loads(await response.read())["data"]
    except (OSError, h11.RemoteProtocolError, ValueError, KeyError, TypeError) as error:
        if name is not None:
            return name, ""
        raise JaxserveError(f"cannot list the models of the server: {error!r}") from error
    roots = {model["id"]: model.get("root") or "" for model in models}
    name = next(iter(roots), "") if name is None else name
    return name, roots.get(name, "")


async def _measure(
    endpoint: Endpoint, load: Load, workload: Workload, settings: ServeSettings, *, seed: int
) -> Point:
    await warm_up(endpoint, workload.warm, settings.num_warmups)
    hidden = None if settings.show_progress else True  # None: where there is no terminal
    with tqdm(total=len(workload.jobs), unit="request", disable=hidden) as bar:
        run = await drive(
            endpoint,
            workload.jobs,
            load.arrivals.times_s(len(workload.jobs), seed=seed),
            max_concurrency=load.max_concurrency,
            progress=lambda _: bar.update(),
        )
    return Point(
        model=endpoint.model,
        load=load,
        workload=workload,
        run=run,
        metrics=ServingMetrics.of(run.records, run.duration_s, goodput=settings.goodput),
    )
