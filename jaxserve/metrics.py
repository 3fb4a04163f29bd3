"""What the engine reports of itself, and its Prometheus form under vLLM's metric names."""

from dataclasses import dataclass
from typing import Protocol

from jaxserve.request import FinishReason, RequestMetrics, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One engine step: gauges as they are after it, counts as increments since the last one.

    prefix_queries and prefix_hits are in tokens: prompt tokens looked up, and found, in the cache.
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

    def observe_first_token(self, latency_s: float) -> None:
        """A choice got its first token, `latency_s` seconds after the request arrived."""
        ...

    def observe_inter_token(self, latency_s: float) -> None:
        """A choice got its next token, `latency_s` seconds after the one before."""
        ...

    def observe_finished(self, stats: FinishedStats) -> None:
        """A choice ended."""
        ...
