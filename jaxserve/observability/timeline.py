"""Where the time of every step goes: the host's phases, the device's time, and the gaps between.

The engine calls a `Timeline` at the edges of its phases; that costs a few clock readings a step, so
it is always on. What it knows of the device it knows from outside: when a program was given to it,
when a wait for its result returned, and what a glance at the newest step said before and after the
host planned the next one. `StepRecord` tells what that bounds.
"""

import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from jaxserve.api.plan import PendingStep, StepPlan

# In the order in which a step goes through them.
PHASES = ("deliver", "schedule", "pack", "dispatch", "wait", "commit", "emit")
NUM_RECENT = 4096


class StepRecord(Struct, kw_only=True, gc=False):
    """One step, in seconds and counts.

    Host phases. deliver: between two calls of `Engine.step`, while there is work: metrics, events
    passed on, requests taken in. schedule: planning. pack: laying the plan out, and giving slots to
    sequences. dispatch: giving the program to the device. wait: for its result, until it is in host
    memory. commit: accounting for it. emit: making events. Over many steps they add up to all the
    time of the engine's thread in which there was work.

    device_s: from when the device could begin (the step was packed, and the one before was seen
    finished) until the step was seen finished. An upper bound of the time it computed. It is exact
    but for the launch and the host's waking up where the host waited for the step, which it does
    unless it is itself the slower of the two; then it is seen finished at the next glance only.

    gap_s, gap_max_s: a lower and an upper bound of how long the device had nothing to do before
    this step, because the host had not given it the step yet. Both are 0 if the step before was
    seen at work after this one was dispatched. Otherwise the lower bound runs from the moment that
    one was first seen finished to the end of packing this one, the upper bound from the last
    moment it was known to be at work to the return of the dispatch. What a device needs to launch
    a program that is queued already is in neither: only a trace shows it (bench/device_trace.py).

    num_tokens, num_sequences: without padding; padded_tokens, padded_sequences: as the program
    computes them. flops, read_bytes, written_bytes: what the step needs at least, of one device,
    without padding (execution/cost.py).
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
        """What the step cost the host, which is all but the wait."""
        return (
            self.deliver_s
            + self.schedule_s
            + self.pack_s
            + self.dispatch_s
            + self.commit_s
            + self.emit_s
        )


class _Device(Struct, kw_only=True, gc=False):
    """What is known of a step's work on the device.

    begin_s: it cannot have begun before. busy_s: the last moment it was known to be unfinished.
    ready_s: the first moment it was seen finished, None until then.
    """

    record: StepRecord
    pending: PendingStep
    begin_s: float
    busy_s: float
    ready_s: float | None = None

    def glance(self, now_s: float) -> None:
        """Look whether it is finished."""
        if self.ready_s is None:
            if self.pending.is_ready():
                self.finish(now_s)
            else:
                self.busy_s = now_s

    def finish(self, now_s: float) -> None:
        """Take down that it is seen finished."""
        self.ready_s = now_s
        self.record.device_s = now_s - self.begin_s


class Timeline:
    """Takes down where the time of an engine's steps goes, and remembers the recent ones.

    Called by the engine in this order, at the end of each phase: `started`, `scheduled`,
    `dispatched` if there was a plan, `waited` and `committed` if a step is finished, and `ended`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.recent: deque[StepRecord] = deque(maxlen=NUM_RECENT)
        self._clock = clock
        self._now_s = 0.0  # the end of the last phase
        self._deliver_s = 0.0
        self._schedule_s = 0.0
        self._is_busy = False  # whether there was work when the last call of `step` ended
        self._in_flight: deque[_Device] = deque()
        self._newest: _Device | None = None  # of the steps dispatched, finished or not
        self._record: StepRecord | None = None  # of the step being finished

    def started(self) -> None:
        """`Engine.step` begins."""
        now_s = self._clock()
        self._deliver_s = now_s - self._now_s if self._is_busy else 0.0
        self._now_s = now_s
        if self._newest is not None:
            self._newest.glance(now_s)

    def scheduled(self) -> None:
        """The next step is planned, or there is none."""
        now_s = self._clock()
        self._schedule_s = now_s - self._now_s
        self._now_s = now_s

    def dispatched(self, plan: StepPlan, pending: PendingStep) -> None:
        """The device has been given a step."""
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
        """The result of the oldest step under way is there."""
        now_s = self._clock()
        device = self._in_flight.popleft()
        self._record = record = device.record
        record.wait_s = now_s - self._now_s
        # There was nothing to plan in this call if these are not 0.
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

    def drawn(self) -> None:
        """The result of a draw is there, which the device made between two steps."""
        now_s = self._clock()
        if self._record is not None:
            self._record.wait_s += now_s - self._now_s
        self._now_s = now_s

    def committed(self) -> None:
        """The result is accounted for."""
        now_s = self._clock()
        if self._record is not None:
            self._record.commit_s += now_s - self._now_s
        self._now_s = now_s

    def ended(self, *, is_busy: bool) -> StepRecord | None:
        """`Engine.step` ends; return the record of the step it finished, which is complete now.

        is_busy: whether there is still work, so that what comes next is the engine's time.
        """
        now_s = self._clock()
        record, self._record = self._record, None
        if record is not None:
            record.emit_s = now_s - self._now_s
            self.recent.append(record)
        self._now_s = now_s
        self._is_busy = is_busy
        return record
