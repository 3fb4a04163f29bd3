"""Prefixes computed once for several sequences: cached ones, pending ones, and choices."""

import pytest

from jaxserve.api.plan import StepPlan, StepResult
from jaxserve.api.request import FinishReason
from jaxserve.engine import Scheduler
from tests.engine.steps import LONG, answer, make, scheduled, shape
from tests.engine.world import World, request


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    world = World()
    world.run(request("a", LONG))
    world.run(request("b", LONG))
    last = world.answers["b", 0].last
    assert last is not None
    assert last.num_cached_tokens == 20
    assert world.output("b") == world.output("a")


def test_generated_tokens_are_cached_too() -> None:
    world = World()
    world.run(request("a", LONG[:6], max_tokens=11, ignore_eos=True))
    world.run(request("b", (*LONG[:6], *world.output("a"))))
    last = world.answers["b", 0].last
    assert last is not None
    # 17 tokens: the one sampled last was never computed, so four full pages are known.
    assert last.num_cached_tokens == 16


def test_a_wholly_cached_prompt_still_computes_its_last_token() -> None:
    world = World()
    world.run(request("a", LONG[:8]))
    world.run(request("b", LONG[:8]))
    last = world.answers["b", 0].last
    assert last is not None
    assert last.num_cached_tokens == 4


@pytest.mark.parametrize(
    ("cache_salt", "prompt_logprobs", "enable_prefix_caching"),
    [("other", None, True), ("", 0, True), ("", None, False)],
    ids=["another salt", "prompt_logprobs", "caching disabled"],
)
def test_a_prefix_is_not_shared_with(
    cache_salt: str, prompt_logprobs: int | None, enable_prefix_caching: bool
) -> None:
    world = World(enable_prefix_caching=enable_prefix_caching)
    world.run(request("a", LONG))
    world.run(request("b", LONG, cache_salt=cache_salt, prompt_logprobs=prompt_logprobs))
    last = world.answers["b", 0].last
    assert last is not None
    assert last.num_cached_tokens == 0


def test_a_reset_cache_finds_nothing() -> None:
    world = World()
    world.run(request("a", LONG))
    world.engine.reset_prefix_cache()
    world.run(request("b", LONG))
    assert world.engine.stats().prefix_hits == 0


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_choices_of_one_request_share_its_prompt(enable_prefix_caching: bool) -> None:
    world = World(enable_prefix_caching=enable_prefix_caching, max_num_batched_tokens=64)
    world.run(request("a", LONG, n=4, max_tokens=1))
    # The whole prompt once, and for each other choice what follows the last full page.
    assert world.runner.num_computed_tokens == 24 + 3 * 4
    assert len({world.output("a", index)[0] for index in range(4)}) > 1


def test_choices_wait_for_the_pages_and_no_longer() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG[:14], n=2))
    assert len(scheduled(scheduler).rows) == 1
    plan = scheduled(scheduler)
    assert shape(plan) == [(1, 10, 4)]
    scheduler.commit(*first_in_flight(scheduler))
    assert scheduled(scheduler).assignments == ()
    scheduler.commit(plan, answer(plan))
    assert [each.slot for each in scheduled(scheduler).assignments] == [2]


def first_in_flight(scheduler: Scheduler) -> tuple[StepPlan, StepResult]:
    plan, _ = scheduler._in_flight[0]
    assert isinstance(plan, StepPlan)
    return plan, answer(plan)


def test_choices_of_a_cached_prompt_start_at_once() -> None:
    world = World(max_num_batched_tokens=64)
    world.run(request("a", LONG))
    world.add(request("b", LONG, n=3))
    world.step()
    assert len(world.runner.plans[-1].rows) == 3


def test_choices_of_a_prompt_without_a_full_page_start_at_once() -> None:
    world = World()
    world.add(request("a", (1, 2, 3, 4), n=3))
    world.step()
    assert len(world.runner.plans[-1].rows) == 3


def test_another_choice_leads_when_the_first_fails() -> None:
    verdicts = iter([True])
    world = World(fails=lambda row, tokens: next(verdicts, False))
    world.run(request("a", LONG, n=3))
    assert world.answers["a", 0].finish_reason is FinishReason.ERROR
    assert world.output("a", 1) == world.expected("a", 1)
    assert world.output("a", 2) == world.expected("a", 2)


def test_nobody_starts_from_pages_of_a_failed_sequence() -> None:
    world = World(fails=lambda row, tokens: len(tokens) == 26)
    world.run(request("a", LONG, ignore_eos=True))
    assert world.answers["a", 0].finish_reason is FinishReason.ERROR
    world.run(request("b", LONG[:20]))
    assert world.engine.stats().prefix_hits == 0


# Prefixes that are being computed


def test_requests_that_arrive_together_compute_their_prefix_once() -> None:
    world = World(max_num_seqs=8, num_pages=99)
    world.run(*(request(str(index), (*LONG, 40 + index)) for index in range(8)))
    assert world.engine.stats().prefix_hits == 7 * 24
    assert all(world.output(str(index)) == world.expected(str(index)) for index in range(8))


def test_who_awaits_a_prefix_lets_others_pass_and_comes_next() -> None:
    scheduler = make(max_num_batched_tokens=32)
    for name, prompt_ids in (("a", LONG[:9]), ("b", LONG[:10]), ("c", (1, 2))):
        scheduler.add(request(name, prompt_ids))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert [each.prompt_ids for each in first.assignments] == [LONG[:9], (1, 2)]
    assert second.assignments == ()
    scheduler.add(request("d", (3, 4)))
    scheduler.commit(first, answer(first))
    third = scheduled(scheduler)
    assert [each.prompt_ids for each in third.assignments] == [LONG[:10], (3, 4)]
    assert shape(third)[-2:] == [(3, 8, 2), (4, 0, 2)]
    scheduler.check_integrity()


def test_a_prefix_is_awaited_only_as_far_as_it_is_shared() -> None:
    scheduler = make(max_num_batched_tokens=8)
    scheduler.add(request("a", LONG))
    scheduler.add(request("b", (*LONG[:4], 1, 2, 3)))
    first = scheduled(scheduler)
    assert scheduler.stats().num_waiting == 1
    scheduler.commit(first, answer(first))
    scheduled(scheduler)
    assert scheduler.stats().num_waiting == 0


def test_who_awaits_a_prefix_computes_it_when_the_other_leaves() -> None:
    scheduler = make()
    scheduler.add(request("a", LONG[:9]))
    scheduler.add(request("b", LONG[:9]))
    scheduled(scheduler)
    scheduler.abort("a")
    scheduler.check_integrity()
    assert [row.start for row in scheduled(scheduler).rows] == [0]


def test_who_awaits_a_prefix_can_leave() -> None:
    scheduler = make()
    scheduler.add(request("a", LONG[:9]))
    scheduler.add(request("b", LONG[:9]))
    scheduled(scheduler)
    assert (scheduler.stats().num_waiting, scheduler.stats().num_deferred) == (1, 1)
    scheduler.abort("b")
    scheduler.check_integrity()
    assert (scheduler.stats().num_waiting, scheduler.stats().num_deferred) == (0, 0)


def test_nobody_awaits_a_prefix_from_who_has_to_wait_for_it() -> None:
    scheduler = make(policy="priority", max_num_batched_tokens=4)
    scheduler.add(request("a", LONG[:9], priority=1))
    scheduled(scheduler)
    scheduler.add(request("b", LONG[:9], priority=0))
    assert [each.prompt_ids for each in scheduled(scheduler).assignments] == [LONG[:9]]


def test_log_probabilities_of_a_prompt_are_not_awaited_from_others() -> None:
    scheduler = make(max_num_batched_tokens=24)
    scheduler.add(request("a", LONG[:9]))
    scheduler.add(request("b", LONG[:9], prompt_logprobs=0))
    assert [row.start for row in scheduled(scheduler).rows] == [0, 0]


# Room made by forgetting


def full_of(*prompts: tuple[int, ...], num_pages: int) -> Scheduler:
    """A scheduler whose cache holds these prompts, in an otherwise full pool."""
    scheduler = make(num_pages=num_pages, max_num_seqs=1, max_num_batched_tokens=64)
    for index, prompt_ids in enumerate(prompts):
        scheduler.add(request(f"old {index}", prompt_ids, max_tokens=1))
        plan = scheduled(scheduler)
        scheduler.commit(plan, answer(plan))
    return scheduler


def started(scheduler: Scheduler) -> list[tuple[int, ...]]:
    """The prompts that run, in the order in which they start, each for one step."""
    prompts: list[tuple[int, ...]] = []
    while scheduler.has_unfinished:
        plan = scheduled(scheduler)
        prompts += [each.prompt_ids for each in plan.assignments]
        scheduler.commit(plan, answer(plan))
        scheduler.check_integrity()
    return prompts


OTHER = tuple(range(63, 39, -1))


def test_what_the_cache_would_forget_for_the_first_runs_before_it() -> None:
    scheduler = full_of(LONG[:20], num_pages=7)
    scheduler.add(request("a", OTHER[:20], max_tokens=1))
    scheduler.add(request("b", LONG[:18], max_tokens=1))
    assert started(scheduler) == [LONG[:18], OTHER[:20]]
    assert scheduler.stats().prefix_hits == 16


def test_nobody_passes_where_nothing_has_to_be_forgotten() -> None:
    scheduler = full_of(LONG[:20], num_pages=32)
    scheduler.add(request("a", OTHER[:20], max_tokens=1))
    scheduler.add(request("b", LONG[:18], max_tokens=1))
    assert started(scheduler) == [OTHER[:20], LONG[:18]]


def test_nobody_is_passed_over_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.engine.admission.MAX_PASSED", 2)
    scheduler = full_of(LONG[:20], num_pages=7)
    scheduler.add(request("a", OTHER[:20], max_tokens=1))
    for index in range(4):
        scheduler.add(request(str(index), (*LONG[:16], index), max_tokens=1))
    starts = [prompt_ids[0] for prompt_ids in started(scheduler)]
    assert starts.index(OTHER[0]) == 2


def test_nobody_passes_one_of_higher_priority() -> None:
    scheduler = make(num_pages=7, max_num_seqs=1, policy="priority", max_num_batched_tokens=64)
    scheduler.add(request("old", LONG[:20], max_tokens=1))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    scheduler.add(request("a", OTHER[:20], max_tokens=1, priority=0))
    scheduler.add(request("b", LONG[:18], max_tokens=1, priority=1))
    assert started(scheduler) == [OTHER[:20], LONG[:18]]
