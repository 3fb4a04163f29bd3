"""The engine's metrics as plain values, with vLLM's names and shapes: what `LLM.get_metrics` gives.

The series are those of GET /metrics (docs/api.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from jaxserve.observability.series import Family, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A series: its name and labels."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter(Metric):
    """A count that only rises."""

    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge(Metric):
    """A value as it is now."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(Metric):
    """How many values were at most so large, by that bound as Prometheus writes it."""

    count: int
    sum: float
    buckets: dict[str, int]


def metric_values(families: Iterable[Family]) -> list[Metric]:
    """Return a value for each series."""
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
