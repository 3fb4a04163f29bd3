"""How a child that hangs is told from one that works."""

import time
from collections.abc import Callable

import psutil

# How often to look; the precision of the timeouts.
LOOK_S = 0.5
# Work of a process that starts: far more than threads use that wake up now and then, far less than
# the slowest download.
WORK_S = 0.1


class Watch:
    """Notices that a process has hung: it shows no sign of life for too long.

    Its signs are beats. Until the first of them it starts, which may take long and be silent; it
    lives as long as it uses the processor, as compiling and reading do, and waiting for a disk or a
    network that hang does not.
    """

    def __init__(
        self,
        pid: int,
        *,
        start_timeout_s: float,
        hang_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[int], float] | None = None,
    ) -> None:
        self._pid = pid
        self._start_timeout_s = start_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._clock = clock
        self._cpu_s = cpu_s or used_cpu_s
        self._worked_s = 0.0
        self._looked_s = clock()
        self._silent_s = 0.0
        self.has_started = False

    def beat(self) -> None:
        """Take note of a beat."""
        self.has_started = True
        self._silent_s = 0.0

    def is_hung(self) -> bool:
        """Whether there was no sign for too long; to be asked every LOOK_S or more often."""
        now_s = self._clock()
        # What this process has slept through itself, on a machine that was suspended say, does not
        # count: the signs of that time may not have been read yet.
        self._silent_s += min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        if self.has_started:
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
