"""Memory of the host that steps on CPUs work with."""

import ctypes
import os
import sys
from pathlib import Path

import psutil

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = (1 << 31) - 1  # what its int holds
# Who sets one of these has thought about it.
_ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# The files of a control group: its limit, what it uses, and of that the reclaimable page cache.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_PROCESS = Path("/proc/self/cgroup")


def keep_freed(num_bytes: int) -> bool:
    """Keep up to so much freed memory in this process for what is allocated next.

    On CPUs XLA allocates what a step works with at its start, and frees it at its end. glibc gives
    large pieces back to the system then, which has to find and to clear each page of the next
    step's. Returns whether this C library can be told, and was not told otherwise by the
    environment.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _ASKED):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    limit = min(num_bytes, _LARGEST)
    return all(mallopt(option, limit) for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


def free_bytes(*, cgroups: Path = Path("/sys/fs/cgroup"), process: Path = _PROCESS) -> int:
    """Return the bytes that this process may still take of its host's memory.

    That is what the host has available, or what is left within the memory limit of a container.
    cgroups: where control groups are mounted. process: the file that names those of this process.
    """
    left = [psutil.virtual_memory().available]
    try:
        lines = process.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return left[0]
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            left += _left_within(cgroups, name, _V2)
        elif "memory" in controllers.split(","):
            left += _left_within(cgroups / "memory", name, _V1)
    return max(min(left), 0)


def _left_within(mount: Path, name: str, files: tuple[str, str, str]) -> list[int]:
    """Return what each of a group and those around it leaves, as far as they have a limit."""
    limit, usage, inactive = files
    found = []
    # In a container the group's own folder is often mounted as the root of all.
    for folder in [mount, *((mount / name.strip("/")), *(mount / name.strip("/")).parents)]:
        try:
            most = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or "max"
            continue
        # Pages of files that nobody has used for long are given up on demand.
        found.append(most - used + int(stat.get(inactive, 0)))
    return found
