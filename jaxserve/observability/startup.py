"""Where the time of a start goes: stages, some of them side by side, and milestones."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def process_started_s() -> float:
    """Return when this process began, on the clock of `time.perf_counter`.

    Where the operating system does not tell (it is asked on Linux only), that is now.
    """
    now_s = time.perf_counter()
    if sys.platform != "linux":
        return now_s
    # Field 22, counted after the name, which may hold anything: ticks from boot to start.
    fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return now_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a start. start_s: since the process began. num_bytes: read meanwhile, if any."""

    name: str
    start_s: float
    seconds: float
    num_bytes: int = 0

    def line(self) -> str:
        """Return it in words."""
        text = f"{self.name:<11}{self.seconds:>7.2f} s from {self.start_s:>6.2f} s"
        if not self.num_bytes:
            return text
        mb = self.num_bytes / 1e6
        return f"{text}  {mb:.0f} MB, {mb / self.seconds:.0f} MB/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeProgram:
    """A program that is ready to run, and where it came from."""

    name: str
    seconds: float
    origin: str


class Startup:
    """The stages of one start, told by several threads at once.

    began_s: when it began, on the clock of `time.perf_counter`; by default with the process. That
    of an engine in a process that has done other things before is told by its caller.
    """

    def __init__(self, *, began_s: float | None = None) -> None:
        self._began_s = process_started_s() if began_s is None else began_s
        self._lock = threading.Lock()
        self._stages: list[Stage] = []
        self._programs: list[MadeProgram] = []
        self._milestones: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, num_bytes: int = 0) -> Iterator[None]:
        """Take down how long the block takes, also if it fails."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, start_s, time.perf_counter(), num_bytes=num_bytes)

    def add(self, name: str, start_s: float, end_s: float, *, num_bytes: int = 0) -> None:
        """Take down a stage by its times on the clock of `time.perf_counter`."""
        stage = Stage(
            name=name,
            start_s=start_s - self._began_s,
            seconds=end_s - start_s,
            num_bytes=num_bytes,
        )
        with self._lock:
            self._stages.append(stage)

    def imported(self, end_s: float) -> None:
        """Take down that everything up to now, from the beginning, went into imports."""
        self.add("imports", self._began_s, end_s)

    def made(self, program: MadeProgram) -> None:
        """Take down a program that has become ready."""
        with self._lock:
            self._programs.append(program)

    def reached(self, milestone: str) -> float:
        """Take down that a milestone is reached; return the seconds since the beginning."""
        seconds = time.perf_counter() - self._began_s
        with self._lock:
            self._milestones[milestone] = seconds
        return seconds

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that are over."""
        with self._lock:
            return tuple(self._stages)

    @property
    def programs(self) -> tuple[MadeProgram, ...]:
        """The programs made so far."""
        with self._lock:
            return tuple(self._programs)

    @property
    def seconds(self) -> dict[str, float]:
        """Stages by their duration, then milestones by their time since the beginning."""
        stages = {stage.name: stage.seconds for stage in self.stages}
        with self._lock:
            return stages | self._milestones

    def lines(self) -> list[str]:
        """Return all of it as a table, a line each, in the order in which stages began."""
        stages = sorted(self.stages, key=lambda stage: stage.start_s)
        with self._lock:
            milestones = dict(self._milestones)
        return [
            *(stage.line() for stage in stages),
            *(f"{name:<11} at {seconds:>13.2f} s" for name, seconds in milestones.items()),
        ]
