"""Delays double, ends are forgotten, and at some point it is enough."""

from jaxserve.processes.backoff import MAX_DELAY_S, Backoff


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


def test_delays_stop_growing() -> None:
    backoff = Backoff(limit=5000, window_s=10.0, first_delay_s=1.0, clock=Clock())
    delays_s = [backoff.delay_s() for _ in range(5000)]
    assert delays_s[5:8] == [32.0, MAX_DELAY_S, MAX_DELAY_S]
    assert delays_s[-1] == MAX_DELAY_S
    patient = Backoff(limit=2, window_s=10.0, first_delay_s=600.0, clock=Clock())
    assert [patient.delay_s(), patient.delay_s()] == [600.0, 600.0]
