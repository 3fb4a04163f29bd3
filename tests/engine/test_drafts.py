"""Rows that yield several tokens: as many drafts as are confirmed, and one more."""

from functools import partial
from typing import Any

import pytest

from jaxserve.api.plan import RowPlan, StepResult
from jaxserve.engine import Scheduler
from jaxserve.engine.drafts import Drafter
from jaxserve.engine.sequence import Sequence
from tests.engine.steps import answer, make, scheduled
from tests.engine.world import World, request
from tests.fakes import draft


def drafts_of(count: int, *, wrong_every: int = 1000) -> Drafter:
    return partial(draft, count=count, vocab_size=64, wrong_every=wrong_every)


@pytest.mark.parametrize("async_scheduling", [True, False])
@pytest.mark.parametrize("wrong_every", [1, 2, 3, 1000])
def test_drafts_right_or_wrong_change_no_token(wrong_every: int, async_scheduling: bool) -> None:
    world = World(drafter=drafts_of(3, wrong_every=wrong_every), async_scheduling=async_scheduling)
    world.run(
        request("a", (5, 6, 7), max_tokens=30, ignore_eos=True, logprobs=0),
        request("b", tuple(range(10, 34)), max_tokens=21, ignore_eos=True),
    )
    assert world.output("a") == world.expected("a")
    assert world.output("b") == world.expected("b")
    last = world.answers["a", 0].last
    assert last is not None
    assert len(world.events) >= 2


def test_a_row_yields_the_drafts_that_are_right_and_one_more() -> None:
    def num_steps(drafter: Drafter | None) -> int:
        world = World(drafter=drafter, async_scheduling=False)
        world.run(request(max_tokens=25, ignore_eos=True))
        assert len(world.output()) == 25
        return len(world.runner.plans)

    # The first token comes with the prompt, then four of each row.
    assert num_steps(drafts_of(3)) == 1 + 24 // 4
    assert num_steps(drafts_of(3, wrong_every=1)) == num_steps(None) == 25


def make_drafting(drafts: tuple[int, ...], **settings: Any) -> tuple[Scheduler, Sequence]:
    """A scheduler whose one sequence, of 4 tokens and the fifth that follows, has these drafts."""
    scheduler = make(drafter=lambda _: drafts, **settings)
    group = scheduler.add(request(prompt_ids=(1, 2, 4, 5), max_tokens=20, stop_token_ids=(8,)))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    return scheduler, group.sequences[0]


def test_places_of_drafts_that_are_wrong_are_taken_back() -> None:
    scheduler, sequence = make_drafting((10, 11, 12))
    plan = scheduled(scheduler)
    assert plan.rows[0].token_ids == (9, 10, 11, 12)
    assert plan.rows[0].samples == 4
    assert scheduler.schedule() is None, "nobody knows where the sequence ends"
    scheduler.commit(plan, StepResult(token_ids=((10, 20),)))
    assert sequence.output_ids == [9, 10, 20]
    assert (sequence.num_computed, sequence.length) == (6, 7)
    scheduler.check_integrity()
    assert scheduled(scheduler).rows[0].start == 6


def test_nothing_follows_a_stop_token_among_the_drafts() -> None:
    scheduler, sequence = make_drafting((8, 11, 12))
    plan = scheduled(scheduler)
    updates = scheduler.commit(plan, StepResult(token_ids=((8, 11, 12, 13),)))
    assert updates == [(sequence, (8,), None)]
    assert sequence.is_finished
    assert sequence.stop_reason == 8
    scheduler.check_integrity()


def test_drafts_do_not_go_beyond_the_length_of_a_sequence() -> None:
    scheduler, _ = make_drafting(tuple(range(20, 40)), max_model_len=8, max_num_batched_tokens=40)
    # Of 8 tokens 5 are known, and the last of them is sampled without a draft.
    assert scheduled(scheduler).rows[0].token_ids == (9, 20, 21)


def test_drafts_take_the_free_pages_and_no_others() -> None:
    scheduler = make(drafter=lambda _: (20, 21, 22, 23, 24), num_pages=6, page_size=4)
    scheduler.add(request("a", (1, 2, 4, 5), max_tokens=16))
    scheduler.add(request("b", tuple(range(10, 22)), max_tokens=5))
    plan = scheduled(scheduler)
    scheduler.commit(plan, answer(plan))
    rows = scheduled(scheduler).rows
    # Four of five pages hold the prompts. The last one has room for four tokens of a, none of b.
    assert [row.token_ids for row in rows] == [(9, 20, 21, 22)]
    scheduler.check_integrity()


def test_drafts_leave_every_other_sequence_its_token() -> None:
    world = World(drafter=drafts_of(6), max_num_seqs=4, max_num_batched_tokens=5)
    names = ("a", "b", "c", "d")
    world.run(*(request(name, (5, 6, ord(name) % 60), max_tokens=9) for name in names))
    for name in names:
        assert world.output(name) == world.expected(name)


def test_a_preempted_row_of_drafts_is_forgotten() -> None:
    world = World(drafter=drafts_of(3, wrong_every=4), num_pages=8, page_size=4, max_num_seqs=3)
    for name in ("a", "b", "c"):
        world.add(request(name, (5, 6, ord(name) % 60), max_tokens=16, ignore_eos=True))
    world.run()
    for name in ("a", "b", "c"):
        assert world.output(name) == world.expected(name)
    assert world.engine.stats().num_preemptions > 0


def test_rows_without_drafts_are_of_one_token() -> None:
    world = World(drafter=lambda _: ())
    world.run(request(max_tokens=5, ignore_eos=True))
    rows: list[RowPlan] = [row for plan in world.runner.plans for row in plan.rows]
    assert {row.samples for row in rows} == {1}
    assert world.output() == world.expected()
