"""Metrics of a process, and their Prometheus text format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from jaxserve.observability.engine_series import EngineSeries, token_bounds
from jaxserve.observability.series import Family, SeriesSet, Value, metrics_of
from jaxserve.observability.startup import Startup

# Reasons to refuse a request that may succeed later.
REJECTION_REASONS = ("queue", "concurrency", "shutting_down")


class Metrics:
    """The Prometheus series of a process.

    max_model_len: upper bound of the token histograms. Label values come from closed sets: model
    names, routes, methods and reasons. The exception is a bounded number of ignored field names
    from requests.
    """

    def __init__(self, *, max_model_len: int) -> None:
        self.token_bounds = token_bounds(max_model_len)
        self._series = SeriesSet()
        self._compilations: dict[str, Callable[[], int]] = {}
        self._startups: dict[str, Startup] = {}

    def engine(self, model_name: str, *, engine: str = "0") -> "EngineSeries":
        """Return the series of one engine, initialized to zero."""
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
        """Publish the number of unplanned compilations; each scrape calls `count`."""
        self._compilations[model_name] = count

    def set_startup(self, startup: Startup, *, model_name: str) -> None:
        """Publish the stages of a start; each scrape reads them, as compilation may continue."""
        self._startups[model_name] = startup

    def observe_rejection(self, reason: str, *, model_name: str) -> None:
        """Count a request refused for lack of capacity; see REJECTION_REASONS."""
        self._rejections(reason, model_name=model_name).inc()

    def _rejections(self, reason: str, *, model_name: str) -> Value:
        return self._series.counter(
            "vllm:admission_rejections",
            "Requests refused because the server was full or stopping.",
            {"model_name": model_name, "reason": reason},
        )

    def observe_refusal(self, reason: str) -> None:
        """Count a connection or request refused before routing; `reason` is from a closed set."""
        self._series.counter(
            "jaxserve:http_refusals",
            "Connections and requests refused or closed before routing.",
            {"reason": reason},
        ).inc()

    def observe_engine_death(self, num_requests: int) -> None:
        """Count the requests in flight when an engine died."""
        self._series.counter(
            "jaxserve:interrupted_requests",
            "Requests that ended because the engine process died.",
            {},
        ).inc(num_requests)

    def observe_http(self, method: str, handler: str, status: int) -> None:
        """Count an answered request; `method` and `handler` are from closed sets."""
        self._series.counter(
            "jaxserve:http_requests",
            "HTTP requests answered.",
            {"method": method, "handler": handler, "status": str(status)},
        ).inc()

    def observe_ignored_field(self, name: str) -> None:
        """Count an ignored field of a request; names are from a bounded set."""
        self._series.counter(
            "jaxserve:ignored_fields",
            "Request fields that were accepted without effect.",
            {"field": name},
        ).inc()

    def observe_batch_failure(self, kind: str) -> None:
        """Count a failure of a batch that will be retried; `kind` is from a closed set."""
        self._series.counter(
            "jaxserve:batch_failures",
            "Failures to read or write batch data, each retried.",
            {"kind": kind},
        ).inc()

    def set_batches_delayed(self, is_delayed: bool) -> None:
        """Publish whether such failures block batches."""
        self._series.gauge(
            "jaxserve:batches_delayed", "1 while failures block batches, else 0.", {}
        ).set(float(is_delayed))

    def snapshot(self) -> tuple[Family, ...]:
        """Return the current values of all series, for transfer to another process."""
        for model_name, count in self._compilations.items():
            self._series.counter(
                "jaxserve:compilations",
                "Programs compiled after warm-up; each stalled a step.",
                {"model_name": model_name},
            ).set(count())
        for model_name, startup in self._startups.items():
            self._set_startup(startup, model_name)
        return self._series.snapshot()

    def _set_startup(self, startup: Startup, model_name: str) -> None:
        for stage, seconds in startup.seconds.items():
            self._series.gauge(
                "jaxserve:startup_seconds",
                "Duration of each stage of the start, and time from the start of the process to"
                " each milestone.",
                {"model_name": model_name, "stage": stage},
            ).set(seconds)
        for each in startup.stages:
            if each.num_bytes:
                self._series.gauge(
                    "jaxserve:startup_bytes",
                    "Bytes read in a stage of the start.",
                    {"model_name": model_name, "stage": each.name},
                ).set(each.num_bytes)
        # At most a few dozen.
        for program in startup.programs:
            self._series.gauge(
                "jaxserve:program_seconds",
                "Time to compile or load a program.",
                {"model_name": model_name, "program": program.name, "origin": program.origin},
            ).set(program.seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the current values of all series."""
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
