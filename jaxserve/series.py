"""Counters, gauges and histograms that cost their writer next to nothing.

prometheus_client gives them their names and their text when they are read; it takes a lock and a
microsecond or two for every value that is written, these take a tenth of it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

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
        """Yield all families, as they are now."""
        for family in list(self._gauges.values()):
            gauge = GaugeMetricFamily(family.name, family.text, labels=family.labels)
            for labels, value in list(family.series.items()):
                gauge.add_metric(labels, value.value)
            yield gauge
        for family in list(self._counters.values()):
            counter = CounterMetricFamily(family.name, family.text, labels=family.labels)
            for labels, value in list(family.series.items()):
                counter.add_metric(labels, value.value)
            yield counter
        for tallies in list(self._histograms.values()):
            histogram = HistogramMetricFamily(tallies.name, tallies.text, labels=tallies.labels)
            for labels, tally in list(tallies.series.items()):
                bounds = [*map(floatToGoString, tally.bounds), "+Inf"]
                # Running totals: Prometheus' buckets hold what is at or below their bound.
                buckets = list(zip(bounds, accumulate(tally.counts), strict=True))
                histogram.add_metric(labels, buckets, tally.sum)
            yield histogram
