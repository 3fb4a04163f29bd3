"""A scheduler alone, stepped by hand, and steps in words short enough to compare."""

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.plan import StepPlan, StepResult
from jaxserve.engine import Scheduler
from jaxserve.engine.drafts import Drafter
from tests.engine.world import EOS

LONG = tuple(range(10, 34))


def make(
    *,
    num_pages: int = 32,
    page_size: int = 4,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 16,
    max_model_len: int = 64,
    max_queued_requests: int = 100,
    policy: str = "fcfs",
    seed: int = 0,
    clock_s: list[float] | None = None,
    drafter: Drafter | None = None,
) -> Scheduler:
    now = clock_s or [0.0]
    return Scheduler(
        SchedulerConfig(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_queued_requests=max_queued_requests,
            policy=policy,
        ),
        CacheConfig.paged(num_pages=num_pages, page_size=page_size),
        eos_ids=[EOS],
        seed=seed,
        drafter=drafter,
        clock=lambda: now[0],
    )


def scheduled(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def answer(plan: StepPlan, token_id: int = 9) -> StepResult:
    """A result in which every row that samples yields `token_id`."""
    return StepResult(token_ids=tuple((token_id,) if row.samples else () for row in plan.rows))


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """Slot, start and number of tokens of each row."""
    return [(row.slot, row.start, row.num_tokens) for row in plan.rows]
