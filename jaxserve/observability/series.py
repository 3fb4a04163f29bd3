"""Counters, gauges and histograms that cost their writer next to nothing.

prometheus_client gives them their names and their text when they are read; it takes a lock and a
microsecond or two for every value that is written, these take a tenth of it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from operator import add

from msgspec import Struct
from msgspec.structs import replace
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString


class Value:
    """A counter or a gauge. To be written by one thread: adding is no atomic operation."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add an amount."""
        self.value += amount

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value


class Tally:
    """A histogram. To be written by one thread.

    Equal values are added in one call, as the waits of hundreds of sequences for one step are.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Add a value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count


@dataclass(frozen=True, slots=True)
class _Family[Series]:
    """Series of one name, by the values of their labels."""

    name: str
    text: str
    labels: tuple[str, ...]
    series: dict[tuple[str, ...], Series] = field(default_factory=dict[tuple[str, ...], Series])

    def at(self, labels: Mapping[str, str], new: Callable[[], Series]) -> Series:
        """Return the series of these labels, made on first use."""
        key = tuple(labels.values())
        found = self.series.get(key)
        if found is None:
            found = self.series[key] = new()
        return found


class Kind(StrEnum):
    """What a family is of."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Family(Struct, frozen=True, array_like=True):
    """Series of one name as they were at some moment.

    series: the values of their labels, and what each comes to: one number, or a histogram's counts
    (the one above all bounds included) and the sum of what was observed.
    """

    kind: Kind
    name: str
    text: str
    labels: tuple[str, ...]
    series: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]
    bounds: tuple[float, ...] = ()


class SeriesSet:
    """All series that a process reports; read by one thread while others write."""

    def __init__(self) -> None:
        self._gauges: dict[str, _Family[Value]] = {}
        self._counters: dict[str, _Family[Value]] = {}
        self._histograms: dict[str, _Family[Tally]] = {}

    def gauge(self, name: str, text: str, labels: Mapping[str, str]) -> Value:
        """Return the gauge of these labels; its family is made on first use."""
        family = self._gauges.setdefault(name, _Family(name, text, tuple(labels)))
        return family.at(labels, Value)

    def counter(self, name: str, text: str, labels: Mapping[str, str]) -> Value:
        """Return the counter of these labels; its family is made on first use."""
        family = self._counters.setdefault(name, _Family(name, text, tuple(labels)))
        return family.at(labels, Value)

    def histogram(
        self, name: str, text: str, labels: Mapping[str, str], bounds: Sequence[float]
    ) -> Tally:
        """Return the histogram of these labels; its family is made on first use."""
        family = self._histograms.setdefault(name, _Family(name, text, tuple(labels)))
        return family.at(labels, lambda: Tally(bounds))

    def collect(self) -> Iterator[Metric]:
        """Yield all families, as they are now, in prometheus_client's form."""
        return metrics_of(self.snapshot())

    def snapshot(self) -> tuple[Family, ...]:
        """Return all families, as they are now, as values that can go to another process."""
        scalars = [(Kind.GAUGE, family) for family in list(self._gauges.values())]
        scalars += [(Kind.COUNTER, family) for family in list(self._counters.values())]
        found = [
            Family(
                kind,
                family.name,
                family.text,
                family.labels,
                tuple((key, (value.value,)) for key, value in list(family.series.items())),
            )
            for kind, family in scalars
        ]
        for tallies in list(self._histograms.values()):
            series = list(tallies.series.items())
            found.append(
                Family(
                    Kind.HISTOGRAM,
                    tallies.name,
                    tallies.text,
                    tallies.labels,
                    tuple((key, (*tally.counts, tally.sum)) for key, tally in series),
                    tuple(series[0][1].bounds),
                )
            )
        return tuple(found)


def merged(snapshots: Iterable[Iterable[Family]]) -> tuple[Family, ...]:
    """Return the series of several processes as one: equal ones are added up."""
    families: dict[str, Family] = {}
    totals: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {}
    for family in (family for snapshot in snapshots for family in snapshot):
        families.setdefault(family.name, family)
        found = totals.setdefault(family.name, {})
        for key, values in family.series:
            before = found.get(key)
            found[key] = values if before is None else tuple(map(add, before, values))
    return tuple(
        replace(family, series=tuple(totals[name].items())) for name, family in families.items()
    )


def metrics_of(families: Iterable[Family]) -> Iterator[Metric]:
    """Yield families in prometheus_client's form."""
    for family in families:
        match family.kind:
            case Kind.GAUGE:
                gauge = GaugeMetricFamily(family.name, family.text, labels=family.labels)
                for key, (value,) in family.series:
                    gauge.add_metric(key, value)
                yield gauge
            case Kind.COUNTER:
                counter = CounterMetricFamily(family.name, family.text, labels=family.labels)
                for key, (value,) in family.series:
                    counter.add_metric(key, value)
                yield counter
            case Kind.HISTOGRAM:
                histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
                bounds = [*map(floatToGoString, family.bounds), "+Inf"]
                for key, (*counts, total) in family.series:
                    # Running totals: Prometheus' buckets hold what is at or below their bound.
                    buckets = list(zip(bounds, accumulate(counts), strict=True))
                    histogram.add_metric(key, buckets, total)
                yield histogram
