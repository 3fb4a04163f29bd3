"""Statistics of an engine, and the protocol of their receiver."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from jaxserve.api.request import FinishReason, RequestMetrics
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.observability.timeline import StepRecord


class StepStats(Struct, frozen=True, kw_only=True, gc=False):
    """Statistics of one step: gauges after it, and counts since the previous step.

    num_deferred: waiting sequences that wait for a prefix computed by another one.
    num_reused_tokens: prompt tokens that were in the prefix cache.
    prefix_queries, prefix_hits: prompt tokens looked up and found in the prefix cache.
    prefix_stateless: prompt tokens whose KV pages were found, but no recurrent state after them.
    num_kv_slots, num_empty_kv_slots: all and empty token slots of the pages in use, summed over
    steps; their ratio is the wasted KV memory.
    num_released_pages: pages released behind a sliding window.
    first_token_s: seconds from arrival to the first token, of choices that got it in this step.
    inter_token_s: seconds since a choice's previous token, with the number of choices.
    record: timing of the committed step, or None.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_pages_used: int
    num_deferred: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_stateless: int = 0
    num_preemptions: int = 0
    num_kv_slots: int = 0
    num_empty_kv_slots: int = 0
    num_released_pages: int = 0
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
        """Return these gauges with counts relative to `before`."""
        return StepStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_pages=self.num_pages,
            num_pages_used=self.num_pages_used,
            num_deferred=self.num_deferred,
            num_prompt_tokens=self.num_prompt_tokens - before.num_prompt_tokens,
            num_reused_tokens=self.num_reused_tokens - before.num_reused_tokens,
            num_generated_tokens=self.num_generated_tokens - before.num_generated_tokens,
            prefix_queries=self.prefix_queries - before.prefix_queries,
            prefix_hits=self.prefix_hits - before.prefix_hits,
            prefix_stateless=self.prefix_stateless - before.prefix_stateless,
            num_preemptions=self.num_preemptions - before.num_preemptions,
            num_kv_slots=self.num_kv_slots - before.num_kv_slots,
            num_empty_kv_slots=self.num_empty_kv_slots - before.num_empty_kv_slots,
            num_released_pages=self.num_released_pages - before.num_released_pages,
            first_token_s=first_token_s,
            inter_token_s=inter_token_s,
            record=record,
        )


class Totals(Struct, gc=False):
    """Cumulative counts of StepStats since the engine was created."""

    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_stateless: int = 0
    num_preemptions: int = 0
    num_kv_slots: int = 0
    num_empty_kv_slots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStats:
    """Statistics of a finished choice.

    longest: tokens of the request's longest choice; None while other choices are running.
    """

    reason: FinishReason
    times: RequestMetrics
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    longest: int | None
    params: SamplingParams


class EngineMetrics(Protocol):
    """Receiver of an engine's statistics. Its loop calls every method, so they must be fast."""

    def observe_step(self, stats: StepStats) -> None:
        """Record a committed step, or a step that changed only the queues."""
        ...

    def observe_finished(self, stats: FinishedStats) -> None:
        """Record a finished choice."""
        ...
