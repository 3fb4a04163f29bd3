"""Means and percentiles, as numpy has them and without its start-up time."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` percent of the values lie, interpolated linearly.

    0 where there are no values, as vLLM reports it.
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 where there are no values."""
    return fmean(values) if values else 0.0


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of the values themselves; 0 where there are none."""
    return pstdev(values) if values else 0.0


def percent_word(percent: float) -> str:
    """Return 99 for 99.0 and 99.9 for 99.9, as keys of results have it."""
    return f"{percent:g}"
