"""Stages of a startup are reported by name and duration, from any thread."""

import subprocess
import sys
import threading
import time

import pytest

from jaxserve.observability.startup import MadeProgram, Startup


def test_a_process_knows_when_it_began() -> None:
    before_s = time.perf_counter()
    script = (
        "from jaxserve.observability.startup import process_started_s; print(process_started_s())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    # The operating system counts in hundredths of a second; the clock is the same for all.
    assert before_s - 0.02 <= float(found.stdout) <= time.perf_counter() - 0.01


def test_stages_and_milestones_are_told_by_name_in_seconds() -> None:
    now_s = time.perf_counter()
    startup = Startup(began_s=now_s - 5.0)
    startup.imported(now_s - 1.0)
    with startup.stage("weights"):
        time.sleep(0.01)
    startup.reached("ready")
    seconds = startup.seconds
    assert list(seconds) == ["imports", "weights", "ready"]
    assert seconds["imports"] == pytest.approx(4.0)
    assert 0.01 <= seconds["weights"] < seconds["ready"] - 5.0
    assert seconds["ready"] >= 5.0


def test_a_stage_that_fails_is_told_too() -> None:
    startup = Startup()
    with pytest.raises(OSError, match="gone"), startup.stage("weights"):
        raise OSError("gone")
    assert "weights" in startup.seconds


def test_threads_tell_of_their_stages_at_once() -> None:
    startup = Startup()

    def tell(number: int) -> None:
        with startup.stage(f"stage {number}"):
            startup.made(MadeProgram(name=f"{number}", seconds=0.1, origin="cache"))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(startup.seconds) == len(startup.programs) == 20


def test_the_table_is_in_the_order_in_which_stages_began() -> None:
    startup = Startup(began_s=0.0)
    startup.add("weights", 3.0, 5.0, num_bytes=4 * 10**9)
    startup.add("imports", 0.0, 2.0)
    assert startup.lines() == [
        "imports       2.00 s from   0.00 s",
        "weights       2.00 s from   3.00 s  4000 MB, 2000 MB/s",
    ]
