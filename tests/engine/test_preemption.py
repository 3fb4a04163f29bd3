"""Preemption when pages run out, and resumption."""

from jaxserve.api.plan import StepPlan
from jaxserve.engine import Scheduler
from tests.engine.steps import LONG, answer, make, scheduled, shape
from tests.engine.world import World, request


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


def test_what_was_in_flight_of_a_preempted_sequence_is_ignored_and_sampled_again() -> None:
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
