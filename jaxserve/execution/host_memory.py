"""Host memory: the free bytes of this process, and the allocator's behaviour."""

import ctypes
import os
import sys
from pathlib import Path

import psutil

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = (1 << 31) - 1  # mallopt takes an int
# Respect these settings of the operator.
_ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# Control group files: limit, usage, and the field of reclaimable page cache in the usage.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_PROCESS = Path("/proc/self/cgroup")


def keep_freed(num_bytes: int) -> bool:
    """Keep up to `num_bytes` of freed memory in this process for reuse.

    On CPUs, XLA allocates a step's temporaries at its start and frees them at its end. By default
    glibc returns large blocks to the system, which has to map and zero every page again in the next
    step. Return False if the C library has no such setting, or if the environment sets it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _ASKED):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    limit = min(num_bytes, _LARGEST)
    return all(mallopt(option, limit) for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


def free_bytes(*, cgroups: Path = Path("/sys/fs/cgroup"), process: Path = _PROCESS) -> int:
    """Return the bytes of host memory that this process may still allocate.

    This is the host's available memory, or what the memory limit of a container leaves. cgroups:
    mount point of the control groups. process: file that names the groups of this process.
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
    """Return the bytes left in a group and in each of its parents that has a limit."""
    limit, usage, inactive = files
    found = []
    # Containers often mount the group's own folder as the root.
    for folder in [mount, *((mount / name.strip("/")), *(mount / name.strip("/")).parents)]:
        try:
            most = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        # The kernel reclaims inactive file pages on demand.
        found.append(most - used + int(stat.get(inactive, 0)))
    return found
