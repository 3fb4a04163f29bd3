"""What the engine reports of itself, and its Prometheus form under vLLM's metric names."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from jaxserve.request import FinishReason, RequestMetrics, SamplingParams
from jaxserve.series import Family, SeriesSet, Tally, Value, metrics_of
from jaxserve.timeline import PHASES, StepRecord


class StepStats(Struct, frozen=True, kw_only=True, gc=False):
    """One engine step: gauges as they are after it, counts as increments since the last one.

    prefix_queries and prefix_hits are in tokens: prompt tokens looked up, and found, in the cache.
    num_kv_slots: tokens that the used pages could hold, and num_empty_kv_slots: those of them that
    held nothing, added up over steps: the ratio is the waste of KV memory.
    first_token_s: seconds from the arrival of its request to the first token of each choice that
    got it. inter_token_s: seconds since a choice's last token, and how many choices waited just so
    long: most of a step's do. record: where the time of the step went that was committed, None if
    none was.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_pages_used: int
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0
    num_kv_slots: int = 0
    num_empty_kv_slots: int = 0
    first_token_s: tuple[float, ...] = ()
    inter_token_s: Mapping[float, int] = {}
    record: StepRecord | None = None

    def since(
        self,
        before: "StepStats",
        *,
        first_token_s: tuple[float, ...],
        inter_token_s: Mapping[float, int],
        record: StepRecord | None,
    ) -> "StepStats":
        """Return these gauges, with counts that are increments over `before`."""
        return StepStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_pages=self.num_pages,
            num_pages_used=self.num_pages_used,
            num_prompt_tokens=self.num_prompt_tokens - before.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens - before.num_generated_tokens,
            prefix_queries=self.prefix_queries - before.prefix_queries,
            prefix_hits=self.prefix_hits - before.prefix_hits,
            num_preemptions=self.num_preemptions - before.num_preemptions,
            num_kv_slots=self.num_kv_slots - before.num_kv_slots,
            num_empty_kv_slots=self.num_empty_kv_slots - before.num_empty_kv_slots,
            first_token_s=first_token_s,
            inter_token_s=inter_token_s,
            record=record,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStats:
    """One choice of a request that has ended."""

    reason: FinishReason
    times: RequestMetrics
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    params: SamplingParams


class EngineMetrics(Protocol):
    """Where the engine reports; called from its loop, so every method must be quick."""

    def observe_step(self, stats: StepStats) -> None:
        """A step was committed (also called when a step changed only the queues)."""
        ...

    def observe_finished(self, stats: FinishedStats) -> None:
        """A choice ended."""
        ...


# Bounds of vLLM's histograms, in seconds: its dashboards and alerts are written against them.
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
# vLLM's begin at 10 ms, where a fast decode step would vanish into the first bucket.
PER_TOKEN_S = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008,
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
CHOICES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)


def token_bounds(max_model_len: int) -> tuple[int, ...]:
    """The series 1, 2, 5, 10, 20, 50, ... up to `max_model_len`, as vLLM counts tokens."""
    bounds: list[int] = []
    scale = 1
    while scale <= max_model_len:
        bounds += [factor * scale for factor in (1, 2, 5) if factor * scale <= max_model_len]
        scale *= 10
    return tuple(bounds)


class Metrics:
    """The Prometheus series of a process.

    max_model_len bounds the token histograms. Label values come from closed sets only: model
    names, routes, methods and reasons of ours, never text of a request.
    """

    def __init__(self, *, max_model_len: int) -> None:
        self.token_bounds = token_bounds(max_model_len)
        self._series = SeriesSet()
        self._compilations: dict[str, Callable[[], int]] = {}
        self._startups: dict[str, Callable[[], Mapping[str, float]]] = {}

    def engine(self, model_name: str, *, engine: str = "0") -> "EngineSeries":
        """Return the series of one engine, all of them present at zero from the start."""
        labels = {"model_name": model_name, "engine": engine}
        return EngineSeries(self._series, labels, token_bounds=self.token_bounds)

    def set_cache_config(self, fields: Mapping[str, object], *, model_name: str) -> None:
        """Publish the resolved cache settings as labels of vLLM's `cache_config_info`."""
        labels = {name: str(value) for name, value in fields.items()}
        labels |= {"model_name": model_name, "engine": "0"}
        self._series.gauge("vllm:cache_config_info", "The KV cache's settings.", labels).set(1)

    def set_compilations(self, count: Callable[[], int], *, model_name: str) -> None:
        """Publish how many programs were compiled unplanned; each scrape asks `count`."""
        self._compilations[model_name] = count

    def set_startup(self, seconds: Callable[[], Mapping[str, float]], *, model_name: str) -> None:
        """Publish what `Startup.seconds` says of a start; each scrape asks for it."""
        self._startups[model_name] = seconds

    def observe_rejection(self, reason: str, *, model_name: str) -> None:
        """A request was refused for want of room; `reason` is a word of the server's."""
        self._series.counter(
            "vllm:admission_rejections",
            "Requests refused because the server was full or stopping.",
            {"model_name": model_name, "reason": reason},
        ).inc()

    def observe_http(self, method: str, handler: str, status: int) -> None:
        """A request was answered; `method` and `handler` come from closed sets."""
        self._series.counter(
            "jaxserve:http_requests",
            "HTTP requests answered.",
            {"method": method, "handler": handler, "status": str(status)},
        ).inc()

    def snapshot(self) -> tuple[Family, ...]:
        """Return all series, as they are now, as values that can go to another process."""
        for model_name, count in self._compilations.items():
            self._series.counter(
                "jaxserve:compilations",
                "Programs compiled that none had planned: each stalled its step.",
                {"model_name": model_name},
            ).set(count())
        for model_name, seconds in self._startups.items():
            for stage, value in seconds().items():
                self._series.gauge(
                    "jaxserve:startup_seconds",
                    "Stages of the start by their duration, milestones by their time since the"
                    " process began.",
                    {"model_name": model_name, "stage": stage},
                ).set(value)
        return self._series.snapshot()

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


class EngineSeries:
    """`EngineMetrics` of one engine, under vLLM's names."""

    def __init__(
        self, series: SeriesSet, labels: Mapping[str, str], *, token_bounds: Sequence[float]
    ) -> None:
        def gauge(name: str, text: str) -> Value:
            return series.gauge(f"vllm:{name}", text, labels)

        def counter(name: str, text: str, **more: str) -> Value:
            return series.counter(f"vllm:{name}", text, {**labels, **more})

        def own_counter(name: str, text: str, **more: str) -> Value:
            return series.counter(f"jaxserve:{name}", text, {**labels, **more})

        def histogram(name: str, text: str, bounds: Sequence[float]) -> Tally:
            return series.histogram(f"vllm:{name}", text, labels, bounds)

        self._running = gauge("num_requests_running", "Sequences in the running batch.")
        self._waiting = gauge("num_requests_waiting", "Sequences waiting to be scheduled.")
        self._cache_usage = gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.")
        self._prefix_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._kv_slots = own_counter("kv_slots", "Tokens that used KV pages could hold, by step.")
        self._empty_kv_slots = own_counter("empty_kv_slots", "Those of kv_slots that held nothing.")
        self._preemptions = counter("num_preemptions", "Sequences preempted.")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens processed.")
        self._generation_tokens = counter("generation_tokens", "Tokens generated.")
        self._cached_tokens = counter(
            "prompt_tokens_cached", "Prompt tokens taken from the prefix cache."
        )
        self._finished = {
            reason: counter(
                "request_success", "Choices that ended, by reason.", finished_reason=reason.value
            )
            for reason in FinishReason
        }
        self._step_tokens = histogram(
            "iteration_tokens_total", "Tokens computed by a step.", STEP_TOKENS
        )
        self._flops = counter(
            "estimated_flops_per_gpu", "FLOPs that the steps needed at least, of each device."
        )
        self._read_bytes = counter(
            "estimated_read_bytes_per_gpu",
            "Bytes of device memory that the steps had to read at least, on each device.",
        )
        self._written_bytes = counter(
            "estimated_write_bytes_per_gpu",
            "Bytes of device memory that the steps had to write at least, on each device.",
        )
        # By program; of those there are a few dozen at most.
        self._steps: dict[str, Value] = {}
        self._count_steps: Callable[[str], Value] = lambda program: own_counter(
            "steps", "Steps made, by the program that ran.", program=program
        )
        self._phases = {
            phase: own_counter(
                "step_phase_seconds",
                "Time of the engine's thread while there was work, by the phase of a step.",
                phase=phase,
            )
            for phase in PHASES
        }
        self._device_seconds = own_counter(
            "step_device_seconds", "Time from when the device could begin a step to its end."
        )
        self._gap_lower, self._gap_upper = (
            own_counter(
                "device_gap_seconds",
                "Bounds of the time in which the device had nothing to do though there was work.",
                bound=bound,
            )
            for bound in ("lower", "upper")
        )
        self._computed_tokens = own_counter(
            "step_tokens", "Tokens computed by steps, padding not counted."
        )
        self._padding_tokens = own_counter(
            "step_padding_tokens", "Rows of padding computed by steps."
        )
        self._sequences = own_counter("step_sequences", "Sequences of steps, one count a step.")
        self._first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_S
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between one token and the next.", PER_TOKEN_S
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time of a choice's tokens after its first.",
            PER_TOKEN_S,
        )
        self._end_to_end = histogram(
            "e2e_request_latency_seconds", "From arrival to the end.", REQUEST_S
        )
        self._queue_time = histogram(
            "request_queue_time_seconds", "From arrival to the first step.", REQUEST_S
        )
        self._inference_time = histogram(
            "request_inference_time_seconds", "From the first step to the end.", REQUEST_S
        )
        self._prefill_time = histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", REQUEST_S
        )
        self._decode_time = histogram(
            "request_decode_time_seconds", "From the first token to the end.", REQUEST_S
        )
        tokens = token_bounds
        self._request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a choice.", tokens
        )
        self._request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated by a choice.", tokens
        )
        # vLLM takes the longest choice of a request here; a choice of ours ends on its own.
        self._request_longest = histogram(
            "request_max_num_generation_tokens", "Tokens generated by a choice.", tokens
        )
        self._request_max_tokens = histogram(
            "request_params_max_tokens", "max_tokens as asked for.", tokens
        )
        self._request_n = histogram("request_params_n", "n as asked for.", CHOICES)
        self._request_preemptions = histogram(
            "request_num_preemptions", "Preemptions of a choice.", PREEMPTIONS
        )

    def observe_step(self, stats: StepStats) -> None:
        """Set the gauges and add the step's increments."""
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._cache_usage.set(stats.num_pages_used / stats.num_pages if stats.num_pages else 0.0)
        self._prefix_queries.inc(stats.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits)
        self._cached_tokens.inc(stats.prefix_hits)
        self._kv_slots.inc(stats.num_kv_slots)
        self._empty_kv_slots.inc(stats.num_empty_kv_slots)
        self._preemptions.inc(stats.num_preemptions)
        self._prompt_tokens.inc(stats.num_prompt_tokens)
        self._generation_tokens.inc(stats.num_generated_tokens)
        num_tokens = stats.num_prompt_tokens + stats.num_generated_tokens
        if num_tokens:
            self._step_tokens.observe(num_tokens)
        for latency_s in stats.first_token_s:
            self._first_token.observe(latency_s)
        for latency_s, count in stats.inter_token_s.items():
            self._inter_token.observe(latency_s, count)
        if stats.record is not None:
            self._observe_record(stats.record)

    def _observe_record(self, record: StepRecord) -> None:
        steps = self._steps.get(record.program)
        if steps is None:
            steps = self._steps[record.program] = self._count_steps(record.program)
        steps.inc()
        for phase, series in self._phases.items():
            series.value += getattr(record, f"{phase}_s")
        self._device_seconds.inc(record.device_s)
        self._gap_lower.inc(record.gap_s)
        self._gap_upper.inc(record.gap_max_s)
        self._computed_tokens.inc(record.num_tokens)
        self._padding_tokens.inc(record.padded_tokens - record.num_tokens)
        self._sequences.inc(record.num_sequences)
        self._flops.inc(record.flops)
        self._read_bytes.inc(record.read_bytes)
        self._written_bytes.inc(record.written_bytes)

    def observe_finished(self, stats: FinishedStats) -> None:
        """Count a choice that ended, and the times it reached."""
        self._finished[stats.reason].inc()
        self._request_prompt_tokens.observe(stats.num_prompt_tokens)
        self._request_generation_tokens.observe(stats.num_generated_tokens)
        self._request_longest.observe(stats.num_generated_tokens)
        self._request_n.observe(stats.params.n)
        self._request_preemptions.observe(stats.times.num_preemptions)
        if stats.params.max_tokens is not None:
            self._request_max_tokens.observe(stats.params.max_tokens)
        times = stats.times
        if times.finished_s is None:
            return
        self._end_to_end.observe(times.finished_s - times.arrival_s)
        if times.scheduled_s is None:
            return
        self._queue_time.observe(times.scheduled_s - times.arrival_s)
        self._inference_time.observe(times.finished_s - times.scheduled_s)
        if times.first_token_s is None:
            return
        decode_s = times.finished_s - times.first_token_s
        self._prefill_time.observe(times.first_token_s - times.scheduled_s)
        self._decode_time.observe(decode_s)
        if stats.num_generated_tokens > 1:
            self._per_token.observe(decode_s / (stats.num_generated_tokens - 1))
