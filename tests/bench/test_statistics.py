import numpy as np
import pytest

from jaxserve.bench.statistics import deviation, mean, percent_word, percentile

VALUES = [0.7, 0.1, 2.5, 0.4, 0.4, 9.0, 3.3]


@pytest.mark.parametrize("percent", [0, 1, 25, 50, 90, 99, 99.9, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    assert percentile(VALUES, percent) == pytest.approx(float(np.percentile(VALUES, percent)))


def test_mean_and_deviation_are_numpys() -> None:
    assert mean(VALUES) == pytest.approx(float(np.mean(VALUES)))
    assert deviation(VALUES) == pytest.approx(float(np.std(VALUES)))


def test_no_values_are_reported_as_zero() -> None:
    assert (mean([]), deviation([]), percentile([], 99)) == (0, 0, 0)


def test_a_key_names_a_whole_percentile_without_a_point() -> None:
    assert [percent_word(p) for p in (99.0, 50.0, 99.9)] == ["99", "50", "99.9"]
