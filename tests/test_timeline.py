"""Times of a step, with a clock set by the test, and the bounds of device time."""

from collections.abc import Callable

import pytest

from jaxserve.api.plan import RowPlan, StepPlan, StepResult, StepRun
from jaxserve.observability.timeline import PHASES, StepRecord, Timeline
from tests.engine.world import World, request

RUN = StepRun(
    program="decode-8",
    num_tokens=1,
    padded_tokens=8,
    padded_sequences=8,
    pack_s=0.25,
    flops=3,
    read_bytes=4,
    written_bytes=5,
)
PLAN = StepPlan(rows=(RowPlan(slot=1, start=0, num_tokens=1, token_ids=(1,)),))


class Step:
    """A step that the device finishes at a time the test sets."""

    run = RUN

    def __init__(self, now: Callable[[], float], ready_s: float) -> None:
        self._now = now
        self._ready_s = ready_s

    def is_ready(self) -> bool:
        return self._now() >= self._ready_s

    def wait(self) -> StepResult:
        raise AssertionError("the timeline never waits")


class Phases:
    """A timeline whose phases take the seconds that a test says."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timeline = Timeline(lambda: self.now_s)

    def step(
        self,
        *,
        deliver: float = 0.0,
        schedule: float = 0.0,
        pack_and_dispatch: float | None = 1.0,
        ready_s: float = 0.0,
        wait: float | None = None,
        commit: float = 0.0,
        emit: float = 0.0,
        is_busy: bool = True,
    ) -> StepRecord | None:
        """Go through one call of `Engine.step`; None leaves a part out."""
        timeline = self.timeline
        self.now_s += deliver
        timeline.started()
        self.now_s += schedule
        timeline.scheduled()
        if pack_and_dispatch is not None:
            self.now_s += pack_and_dispatch
            timeline.dispatched(PLAN, Step(lambda: self.now_s, ready_s))
        if wait is not None:
            self.now_s += wait
            timeline.waited()
            self.now_s += commit
            timeline.committed()
        self.now_s += emit
        return timeline.ended(is_busy=is_busy)


def found(record: StepRecord | None) -> StepRecord:
    assert record is not None
    return record


def test_each_phase_of_a_step_is_its_own_time() -> None:
    world = Phases()
    world.step(schedule=1.0, pack_and_dispatch=2.0, ready_s=110.0)
    record = found(world.step(deliver=3.0, pack_and_dispatch=None, wait=4.0, commit=5.0, emit=6.0))
    assert [getattr(record, f"{phase}_s") for phase in PHASES] == [3, 1, 0.25, 1.75, 4, 5, 6]
    assert record.host_s == 17.0
    assert record.start_s == 100.0


def test_phases_add_up_to_all_the_time_in_which_there_was_work() -> None:
    world = Phases()
    world.step(schedule=1.0, ready_s=1.0)
    for _ in range(3):
        world.step(deliver=0.5, schedule=0.125, ready_s=1.0, wait=2.0, commit=0.25, emit=0.75)
    world.step(deliver=7.0, schedule=1.0, pack_and_dispatch=None, wait=1.0, is_busy=False)
    total = sum(
        getattr(record, f"{phase}_s") for record in world.timeline.recent for phase in PHASES
    )
    assert total == world.now_s - 100.0


def test_time_without_work_is_nobodys() -> None:
    world = Phases()
    world.step(wait=1.0, is_busy=False)
    record = found(world.step(deliver=50.0, wait=1.0, is_busy=False))
    assert record.deliver_s == record.gap_s == record.gap_max_s == 0.0


def test_what_the_runner_tells_of_a_step_is_kept() -> None:
    record = found(Phases().step(wait=1.0))
    assert (record.program, record.num_tokens, record.num_sequences) == ("decode-8", 1, 1)
    assert (record.padded_tokens, record.padded_sequences) == (8, 8)
    assert (record.flops, record.read_bytes, record.written_bytes) == (3, 4, 5)


def test_a_device_that_always_has_its_next_step_has_no_gap_and_exact_times() -> None:
    world = Phases()
    world.step(ready_s=110.0)  # packed at 100.25
    world.step(ready_s=125.0, wait=8.0)  # dispatched at 102, the wait ends at 110
    first = world.timeline.recent[-1]
    second = found(world.step(ready_s=200.0, wait=14.0))  # dispatched at 111, ends at 125
    assert first.device_s == 110.0 - 100.25
    assert second.device_s == 125.0 - 110.0
    assert (second.gap_s, second.gap_max_s) == (0.0, 0.0)


def test_a_device_that_runs_dry_has_a_gap_between_two_bounds() -> None:
    world = Phases()
    world.step(ready_s=102.5)  # dispatched at 101
    # At work when this call begins (102), done when its step is packed (105.25) and dispatched.
    world.step(deliver=1.0, schedule=3.0, ready_s=300.0)
    first, second = world.timeline._in_flight
    assert first.ready_s == 106.0  # the first glance that saw it
    assert first.record.device_s == 106.0 - 100.25
    assert second.record.gap_s == 0.0
    assert second.record.gap_max_s == 106.0 - 102.0


def test_a_gap_begins_at_the_latest_when_the_step_before_is_seen_finished() -> None:
    world = Phases()
    world.step(ready_s=101.5)
    world.step(deliver=1.0, schedule=3.0, ready_s=300.0)  # seen at 102, packed at 105.25
    assert world.timeline._in_flight[-1].record.gap_s == 3.25


def test_without_a_step_under_way_the_gap_begins_when_the_wait_ends() -> None:
    world = Phases()
    world.step(ready_s=110.0, wait=9.0, commit=2.0)  # from 100, ends at 110, committed at 112
    record = found(world.step(schedule=1.0, pack_and_dispatch=2.0, wait=5.0))
    assert record.gap_s == 113.25 - 110.0
    assert record.gap_max_s == 115.0 - 110.0
    assert record.device_s == 120.0 - 113.25


def test_only_recent_steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.observability.timeline.NUM_RECENT", 3)
    world = Phases()
    for _ in range(5):
        world.step(wait=1.0)
    assert [record.start_s for record in world.timeline.recent] == [104.0, 106.0, 108.0]


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_an_engine_tells_of_every_step_it_made(async_scheduling: bool) -> None:
    world = World(async_scheduling=async_scheduling)
    world.run(request("a", max_tokens=5), request("b", max_tokens=3))
    records = list(world.engine.timeline.recent)
    assert len(records) == len(world.runner.plans)
    assert [record.num_tokens for record in records] == [
        plan.num_tokens for plan in world.runner.plans
    ]
