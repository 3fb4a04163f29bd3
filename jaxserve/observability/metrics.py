"""The metrics of a process, and their Prometheus form."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from jaxserve.observability.engine_series import EngineSeries, token_bounds
from jaxserve.observability.series import Family, SeriesSet, Value, metrics_of
from jaxserve.observability.startup import Startup

# Why a server refuses requests that it could answer at another time.
REJECTION_REASONS = ("queue", "concurrency", "shutting_down")


class Metrics:
    """The Prometheus series of a process.

    max_model_len bounds the token histograms. Label values come from closed sets only: model
    names, routes, methods and reasons of ours, never text of a request, but for the names of a
    bounded number of ignored fields.
    """

    def __init__(self, *, max_model_len: int) -> None:
        self.token_bounds = token_bounds(max_model_len)
        self._series = SeriesSet()
        self._compilations: dict[str, Callable[[], int]] = {}
        self._startups: dict[str, Startup] = {}

    def engine(self, model_name: str, *, engine: str = "0") -> "EngineSeries":
        """Return the series of one engine, all of them present at zero from the start."""
        labels = {"model_name": model_name, "engine": engine}
        for reason in REJECTION_REASONS:
            self._rejections(reason, model_name=model_name)
        return EngineSeries(self._series, labels, token_bounds=self.token_bounds)

    def set_cache_config(
        self, fields: Mapping[str, object], *, model_name: str, engine: str = "0"
    ) -> None:
        """Publish the resolved cache settings as labels of vLLM's `cache_config_info`."""
        labels = {name: str(value) for name, value in fields.items()}
        labels |= {"model_name": model_name, "engine": engine}
        self._series.gauge("vllm:cache_config_info", "The KV cache's settings.", labels).set(1)

    def set_compilations(self, count: Callable[[], int], *, model_name: str) -> None:
        """Publish how many programs were compiled unplanned; each scrape asks `count`."""
        self._compilations[model_name] = count

    def set_startup(self, startup: Startup, *, model_name: str) -> None:
        """Publish what is known of a start; each scrape asks, since it goes on while serving."""
        self._startups[model_name] = startup

    def observe_rejection(self, reason: str, *, model_name: str) -> None:
        """Count a request that was refused for lack of room; see REJECTION_REASONS."""
        self._rejections(reason, model_name=model_name).inc()

    def _rejections(self, reason: str, *, model_name: str) -> Value:
        return self._series.counter(
            "vllm:admission_rejections",
            "Requests refused because the server was full or stopping.",
            {"model_name": model_name, "reason": reason},
        )

    def observe_refusal(self, reason: str) -> None:
        """A connection or a request was refused before its endpoint; `reason` is a word of ours."""
        self._series.counter(
            "jaxserve:http_refusals",
            "Connections and requests that were refused or cut before they reached an endpoint.",
            {"reason": reason},
        ).inc()

    def observe_engine_death(self, num_requests: int) -> None:
        """An engine died while so many requests were in flight."""
        self._series.counter(
            "jaxserve:interrupted_requests",
            "Requests that ended because the engine's process died while they were in flight.",
            {},
        ).inc(num_requests)

    def observe_http(self, method: str, handler: str, status: int) -> None:
        """A request was answered; `method` and `handler` come from closed sets."""
        self._series.counter(
            "jaxserve:http_requests",
            "HTTP requests answered.",
            {"method": method, "handler": handler, "status": str(status)},
        ).inc()

    def observe_ignored_field(self, name: str) -> None:
        """Count a request's field that nothing reads; names come from a bounded set."""
        self._series.counter(
            "jaxserve:ignored_fields",
            "Fields of requests that were accepted and had no effect.",
            {"field": name},
        ).inc()

    def observe_batch_failure(self, kind: str) -> None:
        """A step of running batches failed, and will be tried again; `kind` is of a closed set."""
        self._series.counter(
            "jaxserve:batch_failures",
            "Failures to read or write what batches need, each tried again.",
            {"kind": kind},
        ).inc()

    def set_batches_delayed(self, is_delayed: bool) -> None:
        """Publish whether such failures keep batches from going on."""
        self._series.gauge(
            "jaxserve:batches_delayed", "1 while batches cannot go on, else 0.", {}
        ).set(float(is_delayed))

    def snapshot(self) -> tuple[Family, ...]:
        """Return all series, as they are now, as values that can go to another process."""
        for model_name, count in self._compilations.items():
            self._series.counter(
                "jaxserve:compilations",
                "Programs compiled that none had planned: each stalled its step.",
                {"model_name": model_name},
            ).set(count())
        for model_name, startup in self._startups.items():
            self._set_startup(startup, model_name)
        return self._series.snapshot()

    def _set_startup(self, startup: Startup, model_name: str) -> None:
        for stage, seconds in startup.seconds.items():
            self._series.gauge(
                "jaxserve:startup_seconds",
                "Stages of the start by their duration, milestones by their time since the process"
                " began.",
                {"model_name": model_name, "stage": stage},
            ).set(seconds)
        for each in startup.stages:
            if each.num_bytes:
                self._series.gauge(
                    "jaxserve:startup_bytes",
                    "Bytes read by a stage of the start.",
                    {"model_name": model_name, "stage": each.name},
                ).set(each.num_bytes)
        # A few dozen at most.
        for program in startup.programs:
            self._series.gauge(
                "jaxserve:program_seconds",
                "What it took to make a program: to compile it, or to load it.",
                {"model_name": model_name, "program": program.name, "origin": program.origin},
            ).set(program.seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield all series, as they are now."""
        return metrics_of(self.snapshot())


def render(families: Iterable[Family]) -> bytes:
    """Return series in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry)


@dataclass(frozen=True, slots=True)
class _Collected(Collector):
    families: Iterable[Family]

    def collect(self) -> Iterator[Metric]:
        return metrics_of(self.families)
