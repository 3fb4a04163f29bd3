"""Heap usage of native code, as reported by the C library."""

import ctypes
import sys


class _Info(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


# Only glibc on Linux has mallinfo2.
_mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if _mallinfo2 is not None:
    _mallinfo2.restype = _Info


def heap_bytes() -> int:
    """Return the bytes allocated by malloc in this process; 0 where that is unknown."""
    if _mallinfo2 is None:
        return 0
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)
