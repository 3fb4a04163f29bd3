"""How much memory native code holds, as far as the C library tells."""

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


# Not in musl, nor on other systems than Linux.
_mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if _mallinfo2 is not None:
    _mallinfo2.restype = _Info


def heap_bytes() -> int:
    """Return the bytes that malloc has given to this process; 0 where that is not known."""
    if _mallinfo2 is None:
        return 0
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)
