"""The scheduler: what runs in which step, who waits, who gives way."""

import pytest

from jaxserve.config import CacheConfig, SchedulerConfig
from jaxserve.engine import Scheduler
from jaxserve.errors import InvalidRequestError, OverloadedError
from jaxserve.plan import StepPlan, StepResult
from jaxserve.request import FinishReason
from tests.engine.world import EOS, World, request

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
        CacheConfig(num_pages=num_pages, page_size=page_size),
        eos_ids=[EOS],
        seed=seed,
        clock=lambda: now[0],
    )


def scheduled(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def answer(plan: StepPlan, token_id: int = 9) -> StepResult:
    """A result in which every row that samples draws `token_id`."""
    return StepResult(token_ids=tuple(token_id if row.samples else None for row in plan.rows))


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """Slot, start and number of tokens of each row."""
    return [(row.slot, row.start, row.num_tokens) for row in plan.rows]


# What one step holds


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG))
    plans = [scheduled(scheduler) for _ in range(3)]
    assert [shape(plan) for plan in plans] == [[(1, 0, 10)], [(1, 10, 10)], [(1, 20, 4)]]
    assert [plan.rows[0].samples for plan in plans] == [False, False, True]


def test_a_prompt_gets_all_its_pages_with_its_first_chunk() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG))
    assert len(scheduled(scheduler).rows[0].new_pages) == 6
    assert scheduled(scheduler).rows[0].new_pages == ()


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", (1, 2, 3)))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    scheduler.add(request("b", LONG))
    scheduler.add(request("c", (4, 5, 6)))
    assert shape(scheduled(scheduler)) == [(1, 3, 1), (2, 0, 9)]
    assert shape(scheduled(scheduler)) == [(1, 4, 1), (2, 9, 9)]
    assert shape(scheduled(scheduler)) == [(1, 5, 1), (2, 18, 6), (3, 0, 3)]


def test_a_chunk_of_one_token_stands_with_the_decodes() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG[:9]))
    scheduler.add(request("b", (1, 2, 3)))
    assert shape(scheduled(scheduler)) == [(2, 0, 1), (1, 0, 9)]


def test_a_token_still_on_the_device_is_fed_back() -> None:
    scheduler = make()
    scheduler.add(request("a", (1, 2, 3)))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert not first.rows[0].feedback
    assert second.rows[0].feedback
    scheduler.commit(first, answer(first, 9))
    scheduler.commit(second, answer(second, 8))
    assert scheduled(scheduler).rows[0].token_ids == (8,)


def test_no_row_is_planned_behind_the_last_token_allowed() -> None:
    scheduler = make()
    scheduler.add(request("a", (1, 2, 3), max_tokens=2))
    scheduled(scheduler)
    scheduled(scheduler)
    assert scheduler.schedule() is None


def test_a_new_page_is_sent_when_a_decode_begins_it() -> None:
    scheduler = make()
    scheduler.add(request("a", (1, 2, 3)))
    rows = [scheduled(scheduler).rows[0] for _ in range(3)]
    assert [row.new_pages for row in rows] == [(1,), (), (2,)]
    assert [row.first_new_page for row in rows if row.new_pages] == [0, 1]


def test_an_idle_scheduler_plans_nothing() -> None:
    assert make().schedule() is None


# Who runs


def test_no_more_sequences_run_than_there_are_slots() -> None:
    scheduler = make(max_num_seqs=2)
    for name in "abc":
        scheduler.add(request(name))
    assert [row.slot for row in scheduled(scheduler).rows] == [1, 2]
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)


def test_a_slot_is_taken_over_as_soon_as_it_is_free() -> None:
    scheduler = make(max_num_seqs=1)
    scheduler.add(request("a", (1, 2, 3), max_tokens=1))
    scheduler.add(request("b", (4, 5, 6)))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    plan = scheduled(scheduler)
    assert plan.assignments[0].prompt_ids == (4, 5, 6)
    assert plan.rows[0].slot == 1


def test_a_prompt_without_room_is_not_overtaken() -> None:
    scheduler = make(num_pages=9)
    scheduler.add(request("a", LONG[:12]))
    scheduler.add(request("b", LONG))
    scheduler.add(request("c", (1,)))
    assert len(scheduled(scheduler).rows) == 1


def test_a_lower_priority_value_runs_first() -> None:
    scheduler = make(policy="priority", max_num_seqs=2)
    scheduler.add(request("a", (1, 1), priority=1))
    scheduler.add(request("b", (2, 2), priority=0))
    scheduler.add(request("c", (3, 3), priority=-1))
    prompts = [each.prompt_ids for each in scheduled(scheduler).assignments]
    assert prompts == [(3, 3), (2, 2)]


def test_priorities_count_for_nothing_under_fcfs() -> None:
    scheduler = make(max_num_seqs=1)
    scheduler.add(request("a", (1, 1), priority=1))
    scheduler.add(request("b", (2, 2), priority=0))
    assert scheduled(scheduler).assignments[0].prompt_ids == (1, 1)


def test_requests_without_seed_get_different_streams_by_the_engines_seed() -> None:
    def seeds(engine_seed: int) -> list[int]:
        scheduler = make(seed=engine_seed)
        scheduler.add(request("a", (1,), seed=None, n=2))
        return [each.seed for each in scheduled(scheduler).assignments]

    assert len(set(seeds(0))) == 2
    assert seeds(0) == seeds(0)
    assert seeds(0) != seeds(1)


# Preemption


def crowded(*, policy: str = "fcfs") -> tuple[Scheduler, StepPlan]:
    """Two sequences of two full pages each in a pool of five: the next step lacks a page."""
    scheduler = make(num_pages=6, policy=policy)
    scheduler.add(request("a", LONG[:8], priority=1))
    scheduler.add(request("b", LONG[8:16], priority=0))
    return scheduler, scheduled(scheduler)


def test_the_latest_arrival_gives_way() -> None:
    scheduler, _ = crowded()
    assert [row.slot for row in scheduled(scheduler).rows] == [1]
    assert scheduler.stats().num_preemptions == 1


def test_the_lowest_priority_gives_way() -> None:
    scheduler, first = crowded(policy="priority")
    slots = {each.prompt_ids: each.slot for each in first.assignments}
    assert [row.slot for row in scheduled(scheduler).rows] == [slots[LONG[8:16]]]


def test_who_gave_way_does_not_come_back_in_the_same_step() -> None:
    scheduler, _ = crowded()
    plan = scheduled(scheduler)
    assert plan.assignments == ()
    assert scheduler.stats().num_waiting == 1


def test_a_preempted_sequence_runs_before_later_arrivals() -> None:
    scheduler, first = crowded()
    second = scheduled(scheduler)
    scheduler.add(request("c", (1, 2)))
    scheduler.commit(first, answer(first))
    scheduler.abort("a")
    scheduler.commit(second, answer(second))
    assert [each.prompt_ids[0] for each in scheduled(scheduler).assignments] == [18, 1]


def test_what_was_in_flight_of_a_preempted_sequence_is_ignored_and_drawn_again() -> None:
    scheduler, first = crowded()
    second = scheduled(scheduler)
    updates = scheduler.commit(first, answer(first))
    assert [sequence.request.id for sequence, _, _ in updates] == ["a"]
    scheduler.commit(second, answer(second))
    scheduler.abort("a")
    plan = scheduled(scheduler)
    assert plan.assignments[0].output_ids == ()
    # Its first page was computed, but not yet committed, when it gave way.
    assert shape(plan) == [(plan.assignments[0].slot, 0, 8)]


def test_a_preempted_sequence_takes_up_its_output_and_its_cached_pages() -> None:
    scheduler = make(num_pages=6)
    scheduler.add(request("a", LONG[:7]))
    scheduler.add(request("b", LONG[7:14]))
    for token_id in (40, 41):
        plan = scheduled(scheduler)
        scheduler.commit(plan, answer(plan, token_id))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan, 42))
    scheduler.abort("a")
    plan = scheduled(scheduler)
    assert plan.assignments[0].output_ids == (40, 41)
    assert plan.rows[0].start == 8
    assert plan.rows[0].token_ids == (41,)


def test_a_prompt_preempted_half_way_starts_its_logprobs_over() -> None:
    world = World(num_pages=11, max_num_batched_tokens=4, max_model_len=41, max_num_seqs=2)
    world.add(request("a", LONG[:3], max_tokens=30, ignore_eos=True))
    for _ in range(3):
        world.step()
    world.run(request("b", LONG, max_tokens=3, prompt_logprobs=0))
    last = world.answers["b", 0].last
    assert last is not None
    assert last.metrics is not None
    assert last.metrics.num_preemptions > 0
    reported = [e.prompt_logprobs for e in world.events if e.prompt_logprobs is not None]
    assert [[lp.chosen.token_id for lp in each] for each in reported] == [list(LONG[1:])]


def test_a_sequence_that_fills_the_pool_alone_finishes() -> None:
    world = World(num_pages=5, page_size=4, max_model_len=64)
    world.run(request("a", LONG[:4], max_tokens=13, ignore_eos=True))
    assert world.output() == world.expected()
    assert len(world.output()) == 13


# Shared prefixes


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
    # 17 tokens: the one drawn last was never computed, so four full pages are known.
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


# Ends


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_only_what_is_needed_is_computed(async_scheduling: bool) -> None:
    world = World(async_scheduling=async_scheduling)
    world.run(request("a", (1, 2, 3), max_tokens=5, ignore_eos=True))
    assert world.runner.num_computed_tokens == 3 + 4


def test_a_stop_seen_a_step_late_costs_one_row() -> None:
    world = World()
    tokens = World()
    tokens.run(request("a", (1, 2, 3), max_tokens=5, ignore_eos=True))
    world.run(request("a", (1, 2, 3), max_tokens=5, stop_token_ids=(tokens.output()[2],)))
    assert len(world.output()) == 3
    assert world.runner.num_computed_tokens == 3 + 2 + 1


def test_a_stop_token_within_min_tokens_is_passed_over() -> None:
    scheduler = make()
    scheduler.add(request("a", min_tokens=2, stop_token_ids=(9,)))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert not scheduler.commit(first, answer(first, 9))[0][0].is_finished
    assert scheduler.commit(second, answer(second, 9))[0][0].is_finished


def test_an_abort_takes_effect_at_once_and_twice_is_no_error() -> None:
    scheduler = make()
    scheduler.add(request("a", n=2))
    assert [sequence.index for sequence in scheduler.abort("a")] == [0, 1]
    assert scheduler.abort("a") == []
    assert not scheduler.has_unfinished
    assert scheduler.schedule() is None
    scheduler.check_integrity()


def test_an_id_can_be_used_again_while_rows_of_its_last_user_are_in_flight() -> None:
    scheduler = make()
    scheduler.add(request("a", LONG[:8]))
    old = scheduled(scheduler)
    scheduler.abort("a")
    scheduler.add(request("a", LONG[:5]))
    new = scheduled(scheduler)
    assert scheduler.commit(old, answer(old)) == []
    assert len(scheduler.commit(new, answer(new))) == 1


# Refusals


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    clock_s = [0.0]
    scheduler = make(max_queued_requests=2, max_num_seqs=1, clock_s=clock_s)
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    with pytest.raises(OverloadedError, match="2 requests are waiting") as caught:
        scheduler.add(request("c"))
    assert caught.value.retry_after_s == 1.0
    scheduler.schedule()
    scheduler.add(request("c"))
    scheduler.check_integrity()


def test_the_hint_grows_with_the_time_between_starts() -> None:
    clock_s = [0.0]
    scheduler = make(max_queued_requests=4, max_num_seqs=1, clock_s=clock_s)
    for name in "abcd":
        scheduler.add(request(name))
    for name in "abc":
        scheduler.schedule()
        clock_s[0] += 50.0
        scheduler.abort(name)
        scheduler.add(request(name))
    with pytest.raises(OverloadedError) as caught:
        scheduler.add(request("e"))
    assert 10.0 < caught.value.retry_after_s <= 60.0


def test_a_refused_request_leaves_no_trace() -> None:
    scheduler = make(max_queued_requests=1)
    scheduler.add(request("a"))
    with pytest.raises(OverloadedError):
        scheduler.add(request("b"))
    scheduler.abort("a")
    scheduler.check_integrity()
    assert not scheduler.has_unfinished


def test_an_id_in_use_is_refused() -> None:
    scheduler = make()
    scheduler.add(request("a"))
    with pytest.raises(InvalidRequestError, match="'a' is already in use"):
        scheduler.add(request("a"))


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "param"), [(14, 4, "max_tokens"), (17, None, "prompt")]
)
def test_what_the_pool_can_never_hold_is_refused(
    num_prompt: int, max_tokens: int | None, param: str
) -> None:
    scheduler = make(num_pages=5)
    with pytest.raises(InvalidRequestError, match="4 pages of 4 tokens") as caught:
        scheduler.add(request("a", LONG[:num_prompt], max_tokens=max_tokens))
    assert caught.value.param == param


def test_without_max_tokens_the_pool_is_a_limit_of_length() -> None:
    world = World(num_pages=5)
    world.run(request("a", LONG[:14], max_tokens=None, ignore_eos=True))
    assert len(world.output()) == 3
    assert world.answers["a", 0].finish_reason is FinishReason.LENGTH
