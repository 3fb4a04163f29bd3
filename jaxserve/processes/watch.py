"""How a child that hangs is told from one that works, and one that pauses from one that answers."""

import time
from collections.abc import Callable

import psutil

# How often to look; the precision of the timeouts.
LOOK_S = 0.5
# How often a child's pulse comes.
PULSE_S = 0.25
# Work of a process that starts: far more than threads use that wake up now and then, far less than
# the slowest download.
WORK_S = 0.1

# A child is silent, which is no reason to end it, when no pulse has come for so long: with the
# times above that is noticed within 2 s of a process being stopped.
SILENT_PULSE_S = 1.0
# Or when its loop has not come round for so long, as in a compilation that a step waits for.
SILENT_LOOP_S = 10.0
# A process without a pulse is stopped, which no step and no compilation explains: it has hung after
# this share of the timeout of its loop, but not sooner than this.
STILL_SHARE = 1 / 6
MIN_STILL_S = 2.0


class Watch:
    """Notices that a process has hung: it shows no sign of life for too long.

    Its signs are beats, which its loop sends each time it comes round, and pulses, which a thread
    sends. Not every process has a pulse. Until the first beat the process starts, which may take
    long and be silent. It lives as long as it uses the processor, as compiling and reading do, and
    waiting for a disk or a network that hang does not. The same holds while a pulse says that the
    loop waits for a compilation.

    silent_s: how long the loop may not come round before the process counts as silent.
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
        """Take note of a beat."""
        self.has_started = True
        self._silent_s = self._loop_s = 0.0

    def pulse(self, *, is_compiling: bool) -> None:
        """Take note of a pulse."""
        self._still_s = 0.0
        self._is_compiling = is_compiling

    @property
    def is_silent(self) -> bool:
        """Whether the process has started but does not answer now, as far as was last looked."""
        if not self.has_started:
            return False
        is_still = self._still_s is not None and self._still_s > SILENT_PULSE_S
        return is_still or self._loop_s > self._silent_loop_s

    def is_hung(self) -> bool:
        """Whether there was no sign for too long; to be asked every LOOK_S or more often."""
        now_s = self._clock()
        # What this process has slept through itself, on a machine that was suspended say, does not
        # count: the signs of that time may not have been read yet.
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
    """Return the processor time that a process has used; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
