"""Describe the machine of a measurement and its other load. Does not import JAX."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from jaxserve import __version__


def describe_host() -> dict[str, str | int]:
    """Return the processor and the versions that a result depends on."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": installed_version("jax"),
        "jaxserve": __version__,
    }


def about_line(*facts: str) -> str:
    """Return facts, machine and versions as one line for a plot."""
    host = describe_host()
    machine = f"{host['cpu']}, {host['cpu_count']} cores"
    versions = f"jaxserve {host['jaxserve']}, jax {host['jax']}"
    return " · ".join([*facts, machine, versions])


def installed_version(package: str) -> str:
    """Return the version of a package, or a placeholder if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class LoadMeter:
    """Context manager that measures the number of cores used in its block.

    other_cores: cores used by processes other than this one and its children. Unless it is near 0,
    use the results for ratios only. Children count only if they live until the end of the block.
    roots: other processes, such as servers, whose process trees count as own.
    """

    def __init__(self, *roots: int) -> None:
        self._roots = (os.getpid(), *roots)
        self.wall_s = 0.0
        self.own_cores = 0.0
        self.other_cores = 0.0

    def __enter__(self) -> Self:
        self._own_s = self._tree_seconds()
        self._all_s = _machine_seconds()
        self._start_s = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wall_s = time.perf_counter() - self._start_s
        own_s = self._tree_seconds() - self._own_s
        self.own_cores = own_s / self.wall_s
        self.other_cores = max(0.0, (_machine_seconds() - self._all_s - own_s) / self.wall_s)

    def _tree_seconds(self) -> float:
        """Return the CPU seconds of own processes, including waited-for children."""
        processes = {
            process.pid: process
            for root in self._roots
            if psutil.pid_exists(root)
            for process in (
                psutil.Process(root),
                *psutil.Process(root).children(recursive=True),
            )
        }
        seconds = 0.0
        for process in processes.values():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds += times.user + times.system + times.children_user + times.children_system
        return seconds


def _machine_seconds() -> float:
    """Return the CPU seconds used by all processes of the machine."""
    times = psutil.cpu_times()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are in user already
    return float(sum(value for name, value in times._asdict().items() if name not in idle))


def _cpu_name() -> str:
    """Return the model name of the CPU if available, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
