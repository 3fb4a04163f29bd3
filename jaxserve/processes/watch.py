"""Liveness monitoring of child processes: detect hung and unresponsive ones."""

import time
from collections.abc import Callable

import psutil

# Interval of checks, and so the precision of the timeouts.
LOOK_S = 0.5
# Interval of a child's pulses.
PULSE_S = 0.25
# CPU time that shows progress of a starting process: far more than idle threads use, far less than
# the slowest download.
WORK_S = 0.1

# A child without a pulse for this long is silent, which is not a reason to kill it. With the
# intervals above, a stopped process is noticed within 2 s.
SILENT_PULSE_S = 1.0
# It is also silent without a beat for this long, as when a step waits for a compilation.
SILENT_LOOP_S = 10.0
# Neither a step nor a compilation stops the pulse. A process without one has hung after this share
# of the timeout of its loop, but not before MIN_STILL_S.
STILL_SHARE = 1 / 6
MIN_STILL_S = 2.0


class Watch:
    """Detects that a process has hung.

    A process sends beats from its main loop, and some processes send pulses from a thread. Before
    its first beat, a process is starting, and may take long to load and compile. Then, and while a
    pulse reports a compilation, using CPU time counts as progress; waiting for a hung disk or
    network uses none.

    start_timeout_s, hang_timeout_s: time without progress, or without a beat, after which the
    process has hung. silent_s: time without a beat after which it counts as silent.
    """

    def __init__(
        self,
        pid: int,
        *,
        start_timeout_s: float,
        hang_timeout_s: float,
        silent_s: float = SILENT_LOOP_S,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[int], float] | None = None,
    ) -> None:
        self._pid = pid
        self._start_timeout_s = start_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._still_timeout_s = min(hang_timeout_s, max(MIN_STILL_S, STILL_SHARE * hang_timeout_s))
        self._silent_loop_s = silent_s
        self._clock = clock
        self._cpu_s = cpu_s or used_cpu_s
        self._worked_s = 0.0
        self._looked_s = clock()
        self._silent_s = 0.0
        self._loop_s = 0.0
        self._still_s: float | None = None
        self._is_compiling = False
        self.has_started = False

    def beat(self) -> None:
        """Record a beat."""
        self.has_started = True
        self._silent_s = self._loop_s = 0.0

    def pulse(self, *, is_compiling: bool) -> None:
        """Record a pulse."""
        self._still_s = 0.0
        self._is_compiling = is_compiling

    @property
    def is_silent(self) -> bool:
        """Whether the process has started but was unresponsive at the last `is_hung`."""
        if not self.has_started:
            return False
        is_still = self._still_s is not None and self._still_s > SILENT_PULSE_S
        return is_still or self._loop_s > self._silent_loop_s

    def is_hung(self) -> bool:
        """Update the timers; return whether it has hung. Call every LOOK_S or more often."""
        now_s = self._clock()
        # Time during which this process itself was suspended does not count, because the beats of
        # that time may not have been read yet.
        passed_s = min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        self._silent_s += passed_s
        self._loop_s += passed_s
        if self._still_s is not None:
            self._still_s += passed_s
            if self.has_started and self._still_s > self._still_timeout_s:
                return True
        if self.has_started and not self._is_compiling:
            return self._silent_s > self._hang_timeout_s
        cpu_s = self._cpu_s(self._pid)
        if cpu_s - self._worked_s >= WORK_S:
            self._worked_s = cpu_s
            self._silent_s = 0.0
        return self._silent_s > self._start_timeout_s


def used_cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds; 0 if it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
