"""A profile's arithmetic, and what a trace says of a device."""

import pytest

from jaxserve.bench.ceilings import Ceilings
from jaxserve.bench.device_trace import DeviceTrace, Operation, _summary
from jaxserve.bench.profile import profile_of, slowest
from jaxserve.observability.timeline import StepRecord

CEILINGS = Ceilings(bytes_per_s=1e9, flops_per_s=1e12)


def step(program: str = "decode-8", **fields: float) -> StepRecord:
    settings = {"num_tokens": 6, "num_sequences": 6, "padded_tokens": 8, **fields}
    return StepRecord(program=program, padded_sequences=8, **settings)  # type: ignore[arg-type]


def test_shares_are_of_all_the_time_of_the_engines_thread() -> None:
    records = [
        step(schedule_s=1.0, wait_s=3.0, device_s=3.5, gap_s=0.5, gap_max_s=1.0),
        step(schedule_s=2.0, wait_s=4.0, device_s=5.5),
    ]
    profile = profile_of(records, CEILINGS)
    assert profile.elapsed_s == 10.0
    assert profile.phases["schedule"].share == 0.3
    assert profile.phases["wait"].p50_s == 3.5
    assert (profile.host.total_s, profile.host.share) == (3.0, 0.3)
    assert profile.device.share == 0.9
    assert (profile.gap.total_s, profile.gap_max.share) == (0.5, 0.1)


def test_a_roofline_is_what_each_step_needs_over_what_all_took() -> None:
    reads = step("reads", wait_s=1.0, device_s=4.0, read_bytes=5e8, written_bytes=5e8, flops=1e11)
    computes = step("computes", wait_s=1.0, device_s=4.0, read_bytes=1e9, flops=3e12)
    profile = profile_of([reads, computes], CEILINGS)
    assert profile.roofline == (1.0 + 3.0) / 8.0
    assert {program.program: program.roofline for program in profile.programs} == {
        "reads": 0.25,
        "computes": 0.75,
    }
    assert (profile.flops, profile.read_bytes, profile.written_bytes) == (1.55e12, 7.5e8, 2.5e8)


def test_padding_is_the_share_of_rows_that_no_token_needs() -> None:
    records = [step("a", wait_s=1.0), step("b", wait_s=1.0, num_tokens=8), step("b", wait_s=1.0)]
    profile = profile_of(records, CEILINGS)
    assert profile.padding == 1 - 20 / 24
    assert {program.program: program.padding for program in profile.programs} == {
        "a": 0.25,
        "b": 0.125,
    }


def test_programs_are_listed_by_the_time_they_take() -> None:
    records = [step("a", device_s=1.0, wait_s=1.0)] * 3 + [step("b", device_s=4.0, wait_s=1.0)]
    assert [program.program for program in profile_of(records, CEILINGS).programs] == ["b", "a"]


def test_the_slowest_steps_are_told_in_their_order_with_what_held_them_up() -> None:
    records = [
        step("a", start_s=10.0, device_s=0.3, pack_s=0.01),
        step("b", start_s=11.0, device_s=0.1, commit_s=0.4),
        step("c", start_s=12.0, device_s=0.2),
    ]
    rows = list(slowest(records, 2))[1:]
    assert [row.split()[:2] for row in rows] == [["0.000", "a"], ["1.000", "b"]]
    assert [row.split()[-2:] for row in rows] == [["pack", "10.000"], ["commit", "400.000"]]


def test_a_device_is_busy_while_any_of_its_streams_is() -> None:
    operations = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("a", 5.0, 6.0)]
    trace = _summary("gpu", operations, [])
    assert (trace.span_s, trace.busy_s, trace.gaps_s) == (6.0, 4.0, None)
    assert trace.operations == [
        Operation(name="a", count=2, seconds=3.0),
        Operation(name="b", count=1, seconds=2.0),
    ]


def test_gaps_lie_between_one_program_and_the_next() -> None:
    programs = [("p", 0.0, 2.0), ("p", 2.5, 4.0), ("q", 4.0, 5.0)]
    assert _summary("tpu", [("a", 0.0, 5.0)], programs).gaps_s == [0.5, 0.0]


def test_a_traces_lines_give_shares_of_all_operations() -> None:
    trace = DeviceTrace(
        device="gpu",
        span_s=2.0,
        busy_s=1.0,
        gaps_s=[0.001],
        operations=[
            Operation(name="a", count=1, seconds=0.75),
            Operation(name="b", count=1, seconds=0.25),
        ],
    )
    lines = list(trace.lines(1))
    assert lines[0] == "gpu: 50.0% busy in 2.000 s traced"
    assert lines[1] == "gap between programs: p50 1000.0 us, p99 1000.0 us"
    assert lines[-1].split() == ["750.000", "75.0%", "1", "a"]


@pytest.mark.parametrize("count", [0, 1])
def test_as_many_slow_steps_are_told_as_were_asked_for(count: int) -> None:
    assert len(list(slowest([step(), step()], count))) == 1 + count
