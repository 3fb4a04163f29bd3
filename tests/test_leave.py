"""A process exits without waiting for threads, and without losing its output."""

import subprocess
import sys
import time

THREAD = "threading.Thread(target=time.sleep, args=(60,), daemon={daemon}).start()"
SCRIPT = """
import sys, threading, time
from jaxserve.processes.leave import leave
{thread}
print("out")
leave({status})
"""


def run(*, thread: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    began_s = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(thread=thread, status=status)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert time.monotonic() - began_s < 30
    return found


def test_a_thread_that_works_on_is_not_waited_for() -> None:
    found = run(thread=THREAD.format(daemon=False), status=3)
    assert (found.returncode, found.stdout, found.stderr) == (3, "out\n", "")


def test_without_other_threads_the_end_is_the_usual_one() -> None:
    for thread in ("", THREAD.format(daemon=True)):
        found = run(thread=thread, status=4)
        assert (found.returncode, found.stdout, found.stderr) == (4, "out\n", "")
