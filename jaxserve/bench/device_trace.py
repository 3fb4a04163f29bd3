"""Read the busy time, gaps and operations of a device from a trace of JAX's profiler.

Unlike an engine's timeline, which observes the device from the host, these are the device's times.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileOptions

# Compute threads of XLA's CPU client.
_CPU_LINES = "tf_XLA"
# Events of these threads that surround operations.
_CPU_FRAMES = ("ThunkExecutor::", "ThreadpoolListener::")
# A TPU has a line for programs and one for operations; a GPU has a line for each stream.
_PROGRAMS, _OPERATIONS, _STREAM = "XLA Modules", "XLA Ops", "Stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """All runs of one operation on one device."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """Activity of one device during a trace.

    span_s: from the first operation to the end of the last. busy_s: time in which at least one
    operation ran. gaps_s: gaps between programs in order, if the device reports programs (TPUs do);
    else None, and span_s - busy_s includes pauses within programs. operations: longest first.
    """

    device: str
    span_s: float
    busy_s: float
    gaps_s: list[float] | None
    operations: list[Operation]

    def lines(self, count: int) -> Iterator[str]:
        """Yield the summary and the longest operations as lines of text."""
        yield f"{self.device}: {self.busy_s / self.span_s:.1%} busy in {self.span_s:.3f} s traced"
        if self.gaps_s:
            gaps_us = sorted(gap_s * 1e6 for gap_s in self.gaps_s)
            yield (
                f"gap between programs: p50 {gaps_us[len(gaps_us) // 2]:.1f} us,"
                f" p99 {gaps_us[len(gaps_us) * 99 // 100]:.1f} us"
            )
        yield f"{'ms':>12}{'share':>9}{'count':>9}  operation"
        total_s = sum(operation.seconds for operation in self.operations)
        for operation in self.operations[:count]:
            yield (
                f"{operation.seconds * 1e3:>12.3f}{operation.seconds / total_s:>9.1%}"
                f"{operation.count:>9}  {operation.name}"
            )


@contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Write a trace of the block for XProf, Perfetto and `read_trace`.

    Python calls are not traced, because that would slow down the measurement.
    """
    options = ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
        yield


def read_trace(folder: Path) -> list[DeviceTrace]:
    """Read the newest trace in `folder`: one result per device that ran operations."""
    files = sorted(
        folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda file: file.stat().st_mtime
    )
    return _devices(ProfileData.from_file(str(files[-1]))) if files else []


type Event = tuple[str, float, float]  # name, begin and end in seconds


def _devices(data: ProfileData) -> list[DeviceTrace]:
    found = []
    for plane in data.planes:
        is_device = plane.name.startswith("/device:")
        operations: list[Event] = []
        programs: list[Event] = []
        for line in plane.lines:
            name = line.name
            if is_device and name == _PROGRAMS:
                programs += _events(line.events)
            elif is_device and (name == _OPERATIONS or name.startswith(_STREAM)):
                operations += _events(line.events)
            elif plane.name == "/host:CPU" and name.startswith(_CPU_LINES):
                operations += [
                    event for event in _events(line.events) if not event[0].startswith(_CPU_FRAMES)
                ]
        if operations:
            found.append(_summary(plane.name, operations, programs))
    return found


def _events(events: Iterable[object]) -> list[Event]:
    return [
        (event.name, event.start_ns * 1e-9, event.end_ns * 1e-9)  # type: ignore[attr-defined]
        for event in events
    ]


def _summary(device: str, operations: list[Event], programs: list[Event]) -> DeviceTrace:
    counts: defaultdict[str, int] = defaultdict(int)
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, begin_s, end_s in operations:
        counts[name] += 1
        seconds[name] += end_s - begin_s
    busy = _union(operations)
    runs = sorted((begin_s, end_s) for _, begin_s, end_s in programs)
    gaps_s = [max(0.0, begin_s - end_s) for (_, end_s), (begin_s, _) in pairwise(runs)]
    return DeviceTrace(
        device=device,
        span_s=busy[-1][1] - busy[0][0],
        busy_s=sum(end_s - begin_s for begin_s, end_s in busy),
        gaps_s=gaps_s if runs else None,
        operations=[
            Operation(name=name, count=counts[name], seconds=seconds[name])
            for name in sorted(seconds, key=lambda name: -seconds[name])
        ],
    )


def _union(events: Iterable[Event]) -> list[tuple[float, float]]:
    """Return the union of events as ordered intervals without overlap."""
    joined: list[tuple[float, float]] = []
    for begin_s, end_s in sorted((begin_s, end_s) for _, begin_s, end_s in events):
        if joined and begin_s <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_s))
        else:
            joined.append((begin_s, end_s))
    return joined
