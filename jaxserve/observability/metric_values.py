"""Metric values with vLLM's names and classes, as returned by `LLM.get_metrics`.

The series are those of GET /metrics (docs/api.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from jaxserve.observability.series import Family, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Name and labels of a series."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter(Metric):
    """A count that never decreases."""

    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge(Metric):
    """A current value."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(Metric):
    """Cumulative counts by upper bound, which is written as in Prometheus."""

    count: int
    sum: float
    buckets: dict[str, int]


def metric_values(families: Iterable[Family]) -> list[Metric]:
    """Return one value per series."""
    return [
        _value(family, dict(zip(family.labels, labels, strict=True)), numbers)
        for family in families
        for labels, numbers in family.series
    ]


def _value(family: Family, labels: dict[str, str], numbers: tuple[float, ...]) -> Metric:
    match family.kind:
        case Kind.COUNTER:
            return Counter(name=family.name, labels=labels, value=int(numbers[0]))
        case Kind.GAUGE:
            return Gauge(name=family.name, labels=labels, value=numbers[0])
        case Kind.HISTOGRAM:
            *counts, total = numbers
            bounds = [*map(str, family.bounds), "+Inf"]
            running = map(int, accumulate(counts))
            return Histogram(
                name=family.name,
                labels=labels,
                count=int(sum(counts)),
                sum=total,
                buckets=dict(zip(bounds, running, strict=True)),
            )
