"""Delays double, ends are forgotten, and at some point it is enough."""

from jaxserve.processes.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_delays_double_until_it_is_enough() -> None:
    backoff = Backoff(limit=3, window_s=10.0, first_delay_s=0.5, clock=Clock())
    assert [backoff.delay_s() for _ in range(5)] == [0.5, 1.0, 2.0, None, None]


def test_ends_before_the_window_are_forgotten() -> None:
    clock = Clock()
    backoff = Backoff(limit=2, window_s=10.0, first_delay_s=1.0, clock=clock)
    assert [backoff.delay_s(), backoff.delay_s()] == [1.0, 2.0]
    clock.now_s = 10.0
    assert backoff.delay_s() == 1.0


def test_without_any_restarts_the_first_end_is_the_last() -> None:
    assert Backoff(limit=0, window_s=10.0, first_delay_s=1.0).delay_s() is None
