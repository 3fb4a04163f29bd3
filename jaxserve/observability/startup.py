"""Timing of a start: stages, some of which run concurrently, and milestones."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def process_started_s() -> float:
    """Return the start time of this process on the clock of `time.perf_counter`.

    Return the current time on systems other than Linux.
    """
    now_s = time.perf_counter()
    if sys.platform != "linux":
        return now_s
    # Field 22 of proc(5), clock ticks from boot to start; the name may contain any character.
    fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return now_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a start. start_s: since the start of the process. num_bytes: bytes read."""

    name: str
    start_s: float
    seconds: float
    num_bytes: int = 0

    def line(self) -> str:
        """Return the stage as a line of text."""
        text = f"{self.name:<11}{self.seconds:>7.2f} s from {self.start_s:>6.2f} s"
        if not self.num_bytes:
            return text
        mb = self.num_bytes / 1e6
        return f"{text}  {mb:.0f} MB, {mb / self.seconds:.0f} MB/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeProgram:
    """A program that is ready to run. origin: whether it was compiled or loaded."""

    name: str
    seconds: float
    origin: str


class Startup:
    """Records the stages of one start. Thread-safe.

    began_s: start time on the clock of `time.perf_counter`, by default that of the process. Pass it
    if the process did other work before.
    """

    def __init__(self, *, began_s: float | None = None) -> None:
        self._began_s = process_started_s() if began_s is None else began_s
        self._lock = threading.Lock()
        self._stages: list[Stage] = []
        self._programs: list[MadeProgram] = []
        self._milestones: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, num_bytes: int = 0) -> Iterator[None]:
        """Record the duration of the block, even if it raises."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, start_s, time.perf_counter(), num_bytes=num_bytes)

    def add(self, name: str, start_s: float, end_s: float, *, num_bytes: int = 0) -> None:
        """Record a stage by its times on the clock of `time.perf_counter`."""
        stage = Stage(
            name=name,
            start_s=start_s - self._began_s,
            seconds=end_s - start_s,
            num_bytes=num_bytes,
        )
        with self._lock:
            self._stages.append(stage)

    def imported(self, end_s: float) -> None:
        """Record the time from the start until `end_s` as imports."""
        self.add("imports", self._began_s, end_s)

    def made(self, program: MadeProgram) -> None:
        """Record a program that is ready."""
        with self._lock:
            self._programs.append(program)

    def reached(self, milestone: str) -> float:
        """Record a milestone now and return the seconds since the start."""
        seconds = time.perf_counter() - self._began_s
        with self._lock:
            self._milestones[milestone] = seconds
        return seconds

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages that have ended."""
        with self._lock:
            return tuple(self._stages)

    @property
    def programs(self) -> tuple[MadeProgram, ...]:
        """Programs that are ready."""
        with self._lock:
            return tuple(self._programs)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and seconds from the start to each milestone."""
        stages = {stage.name: stage.seconds for stage in self.stages}
        with self._lock:
            return stages | self._milestones

    def lines(self) -> list[str]:
        """Return a table of stages, ordered by start time, and milestones."""
        stages = sorted(self.stages, key=lambda stage: stage.start_s)
        with self._lock:
            milestones = dict(self._milestones)
        return [
            *(stage.line() for stage in stages),
            *(f"{name:<11} at {seconds:>13.2f} s" for name, seconds in milestones.items()),
        ]
