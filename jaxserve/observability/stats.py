"""What an engine reports of itself, and to whom."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from jaxserve.api.request import FinishReason, RequestMetrics
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.observability.timeline import StepRecord


class StepStats(Struct, frozen=True, kw_only=True, gc=False):
    """One engine step: gauges as they are after it, counts as increments since the last one.

    num_deferred: of num_waiting, those that wait for a prefix which another sequence computes.
    num_reused_tokens: of num_prompt_tokens, those that the prefix cache had.
    prefix_queries and prefix_hits are in tokens: prompt tokens looked up, and found, in the cache.
    num_kv_slots: tokens that the used pages could hold, and num_empty_kv_slots: those of them that
    held nothing, added up over steps: the ratio is the waste of KV memory.
    num_released_pages: pages released because they fell behind a sliding window.
    first_token_s: seconds from the arrival of its request to the first token of each choice that
    got it. inter_token_s: seconds since a choice's last token, and how many choices waited just so
    long: most of a step's do. record: where the time of the step went that was committed, None if
    none was.
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
        """Return these gauges, with counts that are increments over `before`."""
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
            num_preemptions=self.num_preemptions - before.num_preemptions,
            num_kv_slots=self.num_kv_slots - before.num_kv_slots,
            num_empty_kv_slots=self.num_empty_kv_slots - before.num_empty_kv_slots,
            num_released_pages=self.num_released_pages - before.num_released_pages,
            first_token_s=first_token_s,
            inter_token_s=inter_token_s,
            record=record,
        )


@dataclass(slots=True)
class Totals:
    """The counts of StepStats in the making, since the engine was made."""

    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0
    num_kv_slots: int = 0
    num_empty_kv_slots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStats:
    """One choice of a request that has ended.

    longest: tokens of the request's longest choice, None while other choices go on.
    """

    reason: FinishReason
    times: RequestMetrics
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    longest: int | None
    params: SamplingParams


class EngineMetrics(Protocol):
    """Where the engine reports; called from its loop, so every method must be quick."""

    def observe_step(self, stats: StepStats) -> None:
        """A step was committed (also called when a step changed only the queues)."""
        ...

    def observe_finished(self, stats: FinishedStats) -> None:
        """A choice ended."""
        ...
