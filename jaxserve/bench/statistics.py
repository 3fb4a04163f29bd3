"""Means and percentiles, as in NumPy but without its import time."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` percent of the values lie, interpolated linearly.

    0 if there are no values, as in vLLM.
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def mean(values: Sequence[float]) -> float:
    """Return the mean, or 0 if there are no values."""
    return fmean(values) if values else 0.0


def deviation(values: Sequence[float]) -> float:
    """Return the population standard deviation, or 0 if there are no values."""
    return pstdev(values) if values else 0.0


def percent_word(percent: float) -> str:
    """Format a percentile for keys of results: 99 for 99.0, 99.9 for 99.9."""
    return f"{percent:g}"
