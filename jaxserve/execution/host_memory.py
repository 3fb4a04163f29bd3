"""Memory of the host that steps on CPUs work with."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = (1 << 31) - 1  # what its int holds
# Who sets one of these has thought about it.
_ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


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
