"""The scheduler: what runs in which step, who waits, what ends, what is refused."""

from dataclasses import replace

import pytest

from jaxserve.api.request import FinishReason
from jaxserve.engine import Scheduler
from jaxserve.errors import InvalidRequestError, OverloadedError
from tests.engine.steps import LONG, answer, make, scheduled, shape
from tests.engine.world import World, request

# Contents of a step


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG))
    plans = [scheduled(scheduler) for _ in range(3)]
    assert [shape(plan) for plan in plans] == [[(1, 0, 10)], [(1, 10, 10)], [(1, 20, 4)]]
    assert [plan.rows[0].samples for plan in plans] == [False, False, True]


def test_a_prompt_gets_pages_chunk_by_chunk() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG))
    writes = [scheduled(scheduler).rows[0].table for _ in range(3)]
    assert [[len(write.pages) for write in table] for table in writes] == [[3], [2], [1]]


def test_pages_promised_to_a_prompt_are_not_given_to_others() -> None:
    scheduler = make(num_pages=9, max_num_batched_tokens=10)
    scheduler.add(request("a", LONG))
    scheduler.add(request("b", LONG[::-1][:12]))
    scheduled(scheduler)
    stats = scheduler.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting) == (3, 1, 1)
    scheduler.check_integrity()


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", (1, 2, 3)))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    scheduler.add(request("b", LONG))
    scheduler.add(request("c", (4, 5, 6)))
    assert shape(scheduled(scheduler)) == [(1, 3, 1), (2, 0, 9)]
    assert shape(scheduled(scheduler)) == [(1, 4, 1), (2, 9, 6), (3, 0, 3)]


def test_a_chunk_of_one_token_stands_with_the_decodes() -> None:
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add(request("a", LONG[:9]))
    scheduler.add(request("b", (1,)))
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
    assert [row.table for row in rows] == [((0, (1,)),), (), ((1, (2,)),)]


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
    scheduler.add(request("b", LONG[::-1]))
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


def test_many_choices_leave_room_for_the_requests_of_others() -> None:
    scheduler = make(max_queued_requests=200, max_num_seqs=1)
    scheduler.add(request("many", n=128))
    with pytest.raises(OverloadedError, match="127 choices beyond the first"):
        scheduler.add(request("as many", n=128))
    for name in range(199):
        scheduler.add(request(f"one {name}"))
    with pytest.raises(OverloadedError, match="200 requests are waiting"):
        scheduler.add(request("one more"))
    scheduler.schedule()
    scheduler.add(request("one more"))
    scheduler.abort("many")
    scheduler.abort("one 0")
    scheduler.add(request("as many", n=128))
    scheduler.check_integrity()


def test_a_request_runs_before_most_choices_of_earlier_ones() -> None:
    scheduler = make(max_num_seqs=1, max_num_batched_tokens=4, max_queued_requests=1100)
    for name in range(8):
        scheduler.add(request(f"many {name}", n=128, max_tokens=1))
    scheduler.add(request("one", max_tokens=1))
    # 9 choices of the first request, 8 of the second, and so on.
    assert num_finished_before(scheduler, "one") == sum(range(2, 10))


def test_a_request_runs_before_most_prompts_of_an_earlier_answer() -> None:
    scheduler = make(max_num_seqs=1, max_num_batched_tokens=4)
    for turn in range(50):
        scheduler.add(replace(request(f"prompt {turn}", max_tokens=1), turn=turn))
    scheduler.add(request("one", max_tokens=1))
    assert num_finished_before(scheduler, "one") == 2


def test_choices_are_not_passed_for_ever() -> None:
    scheduler = make(max_num_seqs=1, max_num_batched_tokens=4)
    two = scheduler.add(request("two", n=2, max_tokens=1))
    for name in range(3):
        scheduler.add(request(f"later {name}", max_tokens=1))
    num_finished_before(scheduler, "later 1")
    assert two.num_unfinished == 0


def num_finished_before(scheduler: Scheduler, name: str) -> int:
    """Run until a request has finished; return how many sequences finished before it."""
    count = 0
    while True:
        plan = scheduled(scheduler)
        for sequence, *_ in scheduler.commit(plan, answer(plan)):
            if sequence.request.id == name:
                return count
            count += 1


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


# Counts


def test_slots_of_used_pages_are_counted_step_by_step_and_those_that_are_empty() -> None:
    scheduler = make()
    scheduler.add(request("a", (1, 2, 3, 4, 5), max_tokens=3))
    for _ in range(2):
        plan = scheduled(scheduler)
        scheduler.commit(plan, answer(plan))
    stats = scheduler.stats()
    # Two pages of four: five tokens are written by the first step, six by the second.
    assert (stats.num_kv_slots, stats.num_empty_kv_slots) == (16, 3 + 2)
