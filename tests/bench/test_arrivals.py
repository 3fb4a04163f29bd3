import math
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from jaxserve.bench.arrivals import Arrivals
from jaxserve.errors import ConfigError


def gaps(arrivals: Arrivals, count: int = 20000) -> list[float]:
    times_s = [0.0, *arrivals.times_s(count, seed=3)]
    return [after - before for before, after in pairwise(times_s)]


def test_at_an_infinite_rate_all_come_at_once() -> None:
    assert Arrivals().times_s(3, seed=0) == [0, 0, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_of_n_requests_comes_after_n_gaps_whatever_the_seed(seed: int) -> None:
    assert Arrivals(request_rate=4).times_s(10, seed=seed)[-1] == pytest.approx(2.5)


def test_the_same_seed_gives_the_same_times() -> None:
    arrivals = Arrivals(request_rate=4)
    assert arrivals.times_s(9, seed=1) == arrivals.times_s(9, seed=1)
    assert arrivals.times_s(9, seed=1) != arrivals.times_s(9, seed=2)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness: float) -> None:
    found = gaps(Arrivals(request_rate=5, burstiness=burstiness))
    assert fmean(found) == pytest.approx(0.2)
    assert pstdev(found) / fmean(found) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_infinite_burstiness_is_even() -> None:
    arrivals = Arrivals(request_rate=10, burstiness=math.inf)
    assert arrivals.times_s(3, seed=0) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("ramp_up", "rates"), [("linear", [1, 4.5, 8]), ("exponential", [1, math.sqrt(8), 8])]
)
def test_a_ramp_goes_from_the_first_rate_to_the_last(ramp_up: str, rates: list[float]) -> None:
    arrivals = Arrivals(ramp_up=ramp_up, start_rps=1, end_rps=8)
    assert [arrivals.rate(index, 3) for index in range(3)] == pytest.approx(rates)


def test_a_ramp_is_not_stretched_to_a_rate() -> None:
    arrivals = Arrivals(ramp_up="linear", start_rps=1, end_rps=2, burstiness=math.inf)
    assert arrivals.times_s(2, seed=0) == [1.0, 1.5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"request_rate": 0.0}, "request_rate must be above 0, got 0"),
        ({"burstiness": -1.0}, "burstiness must be above 0, got -1"),
        ({"ramp_up": "linear", "end_rps": 2.0}, "ramp_up_start_rps must be above 0"),
    ],
)
def test_rates_at_which_nothing_comes_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Arrivals(**settings)  # type: ignore[arg-type]
