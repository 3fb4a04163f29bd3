"""Timing of every step: host phases, device time, and device idle time.

The engine calls a `Timeline` at the end of each phase. This takes a few clock readings per step, so
it is always enabled. The device is observed from the host: when a program was dispatched, when a
wait for its result returned, and whether the newest step was finished before and after the host
scheduled the next one. `StepRecord` defines the resulting bounds.
"""

import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from jaxserve.api.plan import PendingStep, StepPlan

# Phases of a step in order.
PHASES = ("deliver", "schedule", "pack", "dispatch", "wait", "commit", "emit")
NUM_RECENT = 4096


class StepRecord(Struct, kw_only=True, gc=False):
    """Timing and size of one step.

    Host phases, which add up to the busy time of the engine thread:

    - deliver: between two calls of `Engine.step` while there is work: metrics, delivering events,
      receiving requests
    - schedule: scheduling the step
    - pack: packing the plan, assigning slots
    - dispatch: dispatching the program
    - wait: waiting for the result to reach host memory
    - commit: processing the result
    - emit: creating events

    device_s: from when the device could start (the step was packed and the previous one was seen
    finished) until the step was seen finished. This is an upper bound of its computing time. If the
    host waited for the step, it exceeds that time only by the launch and the wake-up of the host.
    If the host was slower than the device, the end is seen late, at the next poll.

    gap_s, gap_max_s: lower and upper bound of the time in which the device was idle because this
    step was not dispatched yet. Both are 0 if the previous step was seen running after the
    dispatch. Otherwise the lower bound runs from when the previous step was first seen finished to
    the end of packing, and the upper bound from when it was last known to be running to the return
    of the dispatch. Neither includes the time to launch a queued program, which only a trace shows
    (bench/device_trace.py).

    num_tokens, num_sequences: without padding. padded_tokens, padded_sequences: with padding.
    flops, read_bytes, written_bytes: minimum work per device, without padding (execution/cost.py).
    """

    start_s: float = 0.0
    deliver_s: float = 0.0
    schedule_s: float = 0.0
    pack_s: float = 0.0
    dispatch_s: float = 0.0
    wait_s: float = 0.0
    commit_s: float = 0.0
    emit_s: float = 0.0
    device_s: float = 0.0
    gap_s: float = 0.0
    gap_max_s: float = 0.0
    num_tokens: int = 0
    num_sequences: int = 0
    padded_tokens: int = 0
    padded_sequences: int = 0
    program: str = ""
    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def host_s(self) -> float:
        """Host time of the step: all phases except the wait."""
        return (
            self.deliver_s
            + self.schedule_s
            + self.pack_s
            + self.dispatch_s
            + self.commit_s
            + self.emit_s
        )


class _Device(Struct, kw_only=True, gc=False):
    """Observations of a step on the device.

    begin_s: earliest possible start. busy_s: last time it was known to be unfinished. ready_s:
    first time it was seen finished, or None.
    """

    record: StepRecord
    pending: PendingStep
    begin_s: float
    busy_s: float
    ready_s: float | None = None

    def glance(self, now_s: float) -> None:
        """Poll whether the step is finished."""
        if self.ready_s is None:
            if self.pending.is_ready():
                self.finish(now_s)
            else:
                self.busy_s = now_s

    def finish(self, now_s: float) -> None:
        """Record that the step was seen finished."""
        self.ready_s = now_s
        self.record.device_s = now_s - self.begin_s


class Timeline:
    """Records the timing of steps, and keeps the recent ones.

    The engine calls its methods in this order: `started`, `scheduled`, `dispatched` if there is a
    plan, `waited` and `committed` if a step is finished, and `ended`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.recent: deque[StepRecord] = deque(maxlen=NUM_RECENT)
        self._clock = clock
        self._now_s = 0.0  # the end of the last phase
        self._deliver_s = 0.0
        self._schedule_s = 0.0
        self._is_busy = False  # whether work remained after the last call of `step`
        self._in_flight: deque[_Device] = deque()
        self._newest: _Device | None = None  # the step dispatched last, finished or not
        self._record: StepRecord | None = None  # the step being committed

    def started(self) -> None:
        """Record the start of `Engine.step`."""
        now_s = self._clock()
        self._deliver_s = now_s - self._now_s if self._is_busy else 0.0
        self._now_s = now_s
        if self._newest is not None:
            self._newest.glance(now_s)

    def scheduled(self) -> None:
        """Record that scheduling has ended, with or without a plan."""
        now_s = self._clock()
        self._schedule_s = now_s - self._now_s
        self._now_s = now_s

    def dispatched(self, plan: StepPlan, pending: PendingStep) -> None:
        """Record that a step was dispatched."""
        now_s, scheduled_s = self._clock(), self._now_s
        self._now_s = now_s
        run = pending.run
        packed_s = scheduled_s + run.pack_s
        record = StepRecord(
            start_s=scheduled_s - self._schedule_s,
            deliver_s=self._deliver_s,
            schedule_s=self._schedule_s,
            pack_s=run.pack_s,
            dispatch_s=now_s - packed_s,
            num_tokens=run.num_tokens,
            num_sequences=len(plan.rows),
            padded_tokens=run.padded_tokens,
            padded_sequences=run.padded_sequences,
            program=run.program,
            flops=run.flops,
            read_bytes=run.read_bytes,
            written_bytes=run.written_bytes,
        )
        self._deliver_s = self._schedule_s = 0.0
        before = self._newest
        if before is not None:
            before.glance(now_s)
            if before.ready_s is not None and self._is_busy:
                record.gap_s = max(0.0, packed_s - before.ready_s)
                record.gap_max_s = now_s - before.busy_s
        self._newest = _Device(record=record, pending=pending, begin_s=packed_s, busy_s=packed_s)
        self._in_flight.append(self._newest)

    def waited(self) -> None:
        """Record that the result of the oldest step in flight has arrived."""
        now_s = self._clock()
        device = self._in_flight.popleft()
        self._record = record = device.record
        record.wait_s = now_s - self._now_s
        # Not 0 only if this call dispatched no step.
        record.deliver_s += self._deliver_s
        record.schedule_s += self._schedule_s
        self._now_s = now_s
        if device.ready_s is None:
            device.busy_s = now_s
            device.finish(now_s)
        assert device.ready_s is not None
        for later in self._in_flight:
            later.begin_s = max(later.begin_s, device.ready_s)
            later.busy_s = max(later.busy_s, device.ready_s)

    def sampled_deferred(self) -> None:
        """Record that the result of deferred sampling has arrived."""
        now_s = self._clock()
        if self._record is not None:
            self._record.wait_s += now_s - self._now_s
        self._now_s = now_s

    def committed(self) -> None:
        """Record that the result was committed."""
        now_s = self._clock()
        if self._record is not None:
            self._record.commit_s += now_s - self._now_s
        self._now_s = now_s

    def ended(self, *, is_busy: bool) -> StepRecord | None:
        """Record the end of `Engine.step` and return the record of the step that it committed.

        is_busy: whether work remains, so that the time until the next call counts as deliver.
        """
        now_s = self._clock()
        record, self._record = self._record, None
        if record is not None:
            record.emit_s = now_s - self._now_s
            self.recent.append(record)
        self._now_s = now_s
        self._is_busy = is_busy
        return record
