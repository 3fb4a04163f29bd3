"""Freed memory stays where a step finds it again."""

import os
import subprocess
import sys

import pytest

# How many pages of 16 pieces of memory, each freed before the next, the system had to find.
COUNT = """
import ctypes, resource, sys
from jaxserve.execution.host_memory import keep_freed
print(keep_freed(1 << 26) if sys.argv[1] == "kept" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(16):
    piece = libc.malloc(ctypes.c_size_t(1 << 25))
    ctypes.memset(piece, 1, 1 << 25)
    libc.free(ctypes.c_void_p(piece))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def count(how: str, **environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


def test_memory_that_was_freed_is_not_cleared_again() -> None:
    answer, kept = count("kept")
    if answer == "False":
        pytest.skip("the C library has no mallopt, or the environment set its thresholds")
    _, given_back = count("given back")
    piece = (1 << 25) // os.sysconf("SC_PAGE_SIZE")
    assert given_back - kept > 8 * piece


def test_thresholds_of_the_environment_are_left_alone() -> None:
    answer, _ = count("kept", MALLOC_TRIM_THRESHOLD_="131072")
    assert answer == "False"
