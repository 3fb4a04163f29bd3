"""Results of the prefix caching benchmark from its rounds."""

import pytest

from benchmarks.prefix_caching import NO_HITS, SHAPES, Round, Turn, interval_of_median, summary


def round_of(*, on: Turn, off: Turn) -> Round:
    return Round(on=on, off=off, other_cores=0.0)


@pytest.mark.parametrize(("count", "ranks"), [(1, (1, 1)), (5, (1, 5)), (20, (6, 15))])
def test_the_median_lies_between_values_of_these_ranks(count: int, ranks: tuple[int, int]) -> None:
    assert interval_of_median(range(count, 0, -1)) == ranks


def test_without_hits_the_engines_thread_decides_whatever_the_clock_says() -> None:
    slow = round_of(
        on=Turn(seconds=2.0, host_s=0.202, steps=74), off=Turn(seconds=1.0, host_s=0.1, steps=74)
    )
    assert slow.speed == 0.5
    assert slow.host_speed == pytest.approx(0.999)
    assert summary(NO_HITS, [slow]).endswith("| 0.99, met |")


def test_with_hits_the_clock_decides() -> None:
    fast = round_of(
        on=Turn(seconds=1.0, host_s=0.1, steps=20), off=Turn(seconds=4.0, host_s=0.3, steps=80)
    )
    assert summary(SHAPES[-1], [fast]).endswith("| **4.000** (4.000 to 4.000) |  | 3, met |")
