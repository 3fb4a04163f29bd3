"""Prometheus series of an engine, with vLLM's metric names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxserve.api.request import FinishReason
from jaxserve.observability.series import SeriesSet, Tally, Value
from jaxserve.observability.stats import FinishedStats, StepStats
from jaxserve.observability.timeline import PHASES, StepRecord

# Histogram bounds in seconds, as in vLLM, whose dashboards and alerts rely on them.
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
# vLLM's bounds start at 10 ms, above the duration of a fast decode step.
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
    """Return the bounds 1, 2, 5, 10, 20, 50, ... up to `max_model_len`, as in vLLM."""
    bounds: list[int] = []
    scale = 1
    while scale <= max_model_len:
        bounds += [factor * scale for factor in (1, 2, 5) if factor * scale <= max_model_len]
        scale *= 10
    return tuple(bounds)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Factory for the series of one engine, with its labels."""

    series: SeriesSet
    labels: Mapping[str, str]
    token_bounds: Sequence[float]

    def gauge(self, name: str, text: str, **more: str) -> Value:
        return self.series.gauge(f"vllm:{name}", text, {**self.labels, **more})

    def counter(self, name: str, text: str, **more: str) -> Value:
        return self.series.counter(f"vllm:{name}", text, {**self.labels, **more})

    def own_counter(self, name: str, text: str, **more: str) -> Value:
        return self.series.counter(f"jaxserve:{name}", text, {**self.labels, **more})

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Tally:
        return self.series.histogram(f"vllm:{name}", text, self.labels, bounds)


class EngineSeries:
    """`EngineMetrics` of one engine as series with vLLM's names."""

    def __init__(
        self, series: SeriesSet, labels: Mapping[str, str], *, token_bounds: Sequence[float]
    ) -> None:
        make = _Maker(series, labels, token_bounds)
        self._load = _LoadSeries(make)
        self._steps = _StepSeries(make)
        self._choices = _ChoiceSeries(make)

    def observe_step(self, stats: StepStats) -> None:
        """Set the gauges and add the increments of a step."""
        self._load.observe(stats)
        if stats.record is not None:
            self._steps.observe(stats.record)

    def observe_finished(self, stats: FinishedStats) -> None:
        """Record the reason, sizes and times of a finished choice."""
        self._choices.observe(stats)


class _LoadSeries:
    """Series of the scheduler: sequences, KV pages, tokens and their latencies."""

    def __init__(self, make: _Maker) -> None:
        self._running = make.gauge("num_requests_running", "Sequences in the running batch.")
        self._waiting = make.gauge("num_requests_waiting", "Sequences waiting to be scheduled.")
        self._waiting_for_capacity, self._deferred = (
            make.gauge(
                "num_requests_waiting_by_reason",
                "Sequences waiting for a slot or KV pages (capacity), or for a prefix that another"
                " sequence is computing (deferred).",
                reason=reason,
            )
            for reason in ("capacity", "deferred")
        )
        self._cache_usage = make.gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.")
        self._prefix_queries = make.counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = make.counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self._prefix_stateless = make.own_counter(
            "prefix_cache_stateless_tokens",
            "Prompt tokens computed again although their KV pages are cached, because no recurrent"
            " state was kept after them.",
        )
        self._kv_slots = make.own_counter(
            "kv_slots", "Token slots of the KV pages in use, summed over steps."
        )
        self._empty_kv_slots = make.own_counter(
            "empty_kv_slots", "Empty token slots of the KV pages in use, summed over steps."
        )
        self._released_pages = make.own_counter(
            "kv_pages_released", "KV pages released behind a sliding window."
        )
        self._preemptions = make.counter("num_preemptions", "Sequences preempted.")
        self._prompt_tokens = make.counter("prompt_tokens", "Prompt tokens processed.")
        self._computed_prompt_tokens, self._reused_prompt_tokens = (
            make.counter(
                "prompt_tokens_by_source",
                "Prompt tokens processed, by source: computed or from the prefix cache.",
                source=source,
            )
            for source in ("local_compute", "local_cache_hit")
        )
        self._generation_tokens = make.counter("generation_tokens", "Tokens generated.")
        self._cached_tokens = make.counter(
            "prompt_tokens_cached", "Prompt tokens taken from the prefix cache."
        )
        self._step_tokens = make.histogram(
            "iteration_tokens_total", "Tokens computed by a step.", STEP_TOKENS
        )
        self._first_token = make.histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token.", FIRST_TOKEN_S
        )
        self._inter_token = make.histogram(
            "inter_token_latency_seconds", "Time between consecutive tokens.", PER_TOKEN_S
        )

    def observe(self, stats: StepStats) -> None:
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._waiting_for_capacity.set(stats.num_waiting - stats.num_deferred)
        self._deferred.set(stats.num_deferred)
        self._cache_usage.set(stats.num_pages_used / stats.num_pages if stats.num_pages else 0.0)
        if stats.prefix_queries:
            self._prefix_queries.inc(stats.prefix_queries)
            self._prefix_hits.inc(stats.prefix_hits)
            self._cached_tokens.inc(stats.prefix_hits)
            self._prefix_stateless.inc(stats.prefix_stateless)
        self._kv_slots.inc(stats.num_kv_slots)
        self._empty_kv_slots.inc(stats.num_empty_kv_slots)
        self._released_pages.inc(stats.num_released_pages)
        self._preemptions.inc(stats.num_preemptions)
        if stats.num_prompt_tokens:
            self._prompt_tokens.inc(stats.num_prompt_tokens)
            self._computed_prompt_tokens.inc(stats.num_prompt_tokens - stats.num_reused_tokens)
            self._reused_prompt_tokens.inc(stats.num_reused_tokens)
        self._generation_tokens.inc(stats.num_generated_tokens)
        num_tokens = stats.num_prompt_tokens + stats.num_generated_tokens
        if num_tokens:
            self._step_tokens.observe(num_tokens)
        for latency_s in stats.first_token_s:
            self._first_token.observe(latency_s)
        for latency_s, count in stats.inter_token_s.items():
            self._inter_token.observe(latency_s, count)


class _StepSeries:
    """Series of steps: host time by phase, device time, and computed work."""

    def __init__(self, make: _Maker) -> None:
        self._flops = make.counter(
            "estimated_flops_per_gpu", "Minimum FLOPs of the steps, per device."
        )
        self._read_bytes = make.counter(
            "estimated_read_bytes_per_gpu",
            "Minimum bytes of memory read by the steps, per device.",
        )
        self._written_bytes = make.counter(
            "estimated_write_bytes_per_gpu",
            "Minimum bytes of memory written by the steps, per device.",
        )
        # By program: at most a few dozen.
        self._steps: dict[str, Value] = {}
        self._count_steps: Callable[[str], Value] = lambda program: make.own_counter(
            "steps", "Steps by program.", program=program
        )
        self._phases = {
            phase: make.own_counter(
                "step_phase_seconds",
                "Busy time of the engine thread, by phase of a step.",
                phase=phase,
            )
            for phase in PHASES
        }
        self._device_seconds = make.own_counter(
            "step_device_seconds", "Time from when the device could start a step to its end."
        )
        self._gap_lower, self._gap_upper = (
            make.own_counter(
                "device_gap_seconds",
                "Lower and upper bounds of the time in which the device was idle despite work.",
                bound=bound,
            )
            for bound in ("lower", "upper")
        )
        self._computed_tokens = make.own_counter(
            "step_tokens", "Tokens computed by steps, without padding."
        )
        self._padding_tokens = make.own_counter(
            "step_padding_tokens", "Padding rows computed by steps."
        )
        self._sequences = make.own_counter(
            "step_sequences", "Sequences in steps, summed over steps."
        )

    def observe(self, record: StepRecord) -> None:
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


class _ChoiceSeries:
    """Series of finished choices: sizes and times."""

    def __init__(self, make: _Maker) -> None:
        self._finished = {
            reason: make.counter(
                "request_success", "Finished choices, by reason.", finished_reason=reason.value
            )
            for reason in FinishReason
        }
        self._per_token = make.histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token of a choice after the first.",
            PER_TOKEN_S,
        )
        self._end_to_end = make.histogram(
            "e2e_request_latency_seconds", "Time from arrival to the end.", REQUEST_S
        )
        self._queue_time = make.histogram(
            "request_queue_time_seconds", "Time from arrival to the first step.", REQUEST_S
        )
        self._inference_time = make.histogram(
            "request_inference_time_seconds", "Time from the first step to the end.", REQUEST_S
        )
        self._prefill_time = make.histogram(
            "request_prefill_time_seconds",
            "Time from the first step to the first token.",
            REQUEST_S,
        )
        self._decode_time = make.histogram(
            "request_decode_time_seconds", "Time from the first token to the end.", REQUEST_S
        )
        tokens = make.token_bounds
        self._request_prompt_tokens = make.histogram(
            "request_prompt_tokens", "Prompt tokens of a choice.", tokens
        )
        self._request_computed_tokens = make.histogram(
            "request_prefill_kv_computed_tokens",
            "Prompt tokens of a choice that were not in the prefix cache.",
            tokens,
        )
        self._request_generation_tokens = make.histogram(
            "request_generation_tokens", "Tokens generated by a choice.", tokens
        )
        self._request_longest = make.histogram(
            "request_max_num_generation_tokens",
            "Tokens generated by the longest choice of a request.",
            tokens,
        )
        self._request_max_tokens = make.histogram(
            "request_params_max_tokens", "max_tokens of a request.", tokens
        )
        self._request_n = make.histogram("request_params_n", "n of a request.", CHOICES)
        self._request_preemptions = make.histogram(
            "request_num_preemptions", "Preemptions of a choice.", PREEMPTIONS
        )

    def observe(self, stats: FinishedStats) -> None:
        self._finished[stats.reason].inc()
        self._request_prompt_tokens.observe(stats.num_prompt_tokens)
        self._request_computed_tokens.observe(stats.num_prompt_tokens - stats.num_cached_tokens)
        self._request_generation_tokens.observe(stats.num_generated_tokens)
        if stats.longest is not None:
            self._request_longest.observe(stats.longest)
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
