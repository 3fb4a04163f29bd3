"""Programs are made in order, once each, on threads that end with the process."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import jax
import pytest

from jaxserve.execution.program_pool import BACKGROUND_NICENESS, LEAST_NICENESS, ProgramPool
from jaxserve.execution.programs import Program
from jaxserve.execution.shapes import FULL, StepShape

TIMEOUT_S = 20.0
PROGRAMS: list[Program] = [StepShape(size, size, 1, FULL) for size in (1, 2, 3, 4)]


class Maker:
    """Makes names of programs, when it is allowed to, and notes who asked."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.made: list[Program] = []
        self.threads: list[int] = []
        self.broken: set[Program] = set()

    def __call__(self, program: Program) -> jax.stages.Compiled:
        self.begun.release()
        assert self.gate.wait(TIMEOUT_S)
        self.made.append(program)
        self.threads.append(threading.get_ident())
        if program in self.broken:
            raise RuntimeError("XLA has given up")
        return cast(jax.stages.Compiled, name(program))


def name(program: Program) -> Any:
    return f"made of {program}"


@contextmanager
def pool_of(maker: Maker, order: list[Program], **settings: Any) -> Iterator[ProgramPool]:
    pool = ProgramPool(maker, order, **{"num_threads": 1, **settings})
    try:
        yield pool
    finally:
        maker.gate.set()
        pool.close()


def test_programs_are_made_unasked_in_their_order() -> None:
    maker = Maker()
    with pool_of(maker, PROGRAMS) as pool:
        pool.finish(timeout_s=TIMEOUT_S)
        assert maker.made == PROGRAMS
        assert pool.num_made == len(PROGRAMS)
        assert [pool.get(program) for program in PROGRAMS] == [name(each) for each in PROGRAMS]
    assert len(maker.made) == len(PROGRAMS)


def test_who_needs_a_program_that_nobody_has_begun_makes_it() -> None:
    maker = Maker()
    maker.gate.clear()
    with pool_of(maker, PROGRAMS) as pool:
        assert maker.begun.acquire(timeout=TIMEOUT_S)  # the first is under way
        assert not pool.has(PROGRAMS[-1])
        threading.Timer(0.05, maker.gate.set).start()
        assert pool.get(PROGRAMS[-1]) == name(PROGRAMS[-1])
        pool.finish(timeout_s=TIMEOUT_S)
    assert sorted(map(str, maker.made)) == sorted(map(str, PROGRAMS))  # none twice
    assert maker.threads[maker.made.index(PROGRAMS[-1])] == threading.get_ident()


def test_who_needs_a_program_under_way_waits_for_it() -> None:
    maker = Maker()
    maker.gate.clear()
    with pool_of(maker, PROGRAMS[:1]) as pool:
        assert maker.begun.acquire(timeout=TIMEOUT_S)
        threading.Timer(0.05, maker.gate.set).start()
        assert pool.get(PROGRAMS[0]) == name(PROGRAMS[0])
    assert len(maker.made) == 1


def test_a_program_that_cannot_be_made_fails_who_needs_it_and_no_other() -> None:
    maker = Maker()
    maker.broken = {PROGRAMS[1]}
    ends: list[int] = []
    with pool_of(maker, PROGRAMS, on_finish=lambda: ends.append(1)) as pool:
        with pytest.raises(RuntimeError, match="XLA has given up"):
            pool.finish(timeout_s=TIMEOUT_S)
        assert [pool.has(program) for program in PROGRAMS] == [True, False, True, True]
        with pytest.raises(RuntimeError, match="XLA has given up"):
            pool.get(PROGRAMS[1])
    assert maker.made == PROGRAMS  # and it is not tried again
    assert ends == [1]


def test_a_closed_pool_begins_nothing_more() -> None:
    maker = Maker()
    maker.gate.clear()
    pool = ProgramPool(maker, PROGRAMS, num_threads=1)
    assert maker.begun.acquire(timeout=TIMEOUT_S)
    threading.Timer(0.05, maker.gate.set).start()
    pool.close()
    assert maker.made == PROGRAMS[:1]


def test_without_an_order_programs_are_made_when_they_are_needed() -> None:
    maker = Maker()
    with pool_of(maker, []) as pool:
        assert all(pool.has(program) for program in PROGRAMS)
        assert maker.made == []
        assert pool.get(PROGRAMS[2]) == name(PROGRAMS[2])
    assert maker.made == [PROGRAMS[2]]


def test_several_programs_are_made_at_once() -> None:
    maker = Maker()
    maker.gate.clear()
    with pool_of(maker, PROGRAMS, num_threads=3):
        for _ in range(3):
            assert maker.begun.acquire(timeout=TIMEOUT_S)
        assert not maker.begun.acquire(timeout=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_what_is_left_after_giving_way_is_made_at_low_priority() -> None:
    priorities: list[int] = []
    maker = Maker()
    maker.gate.clear()

    def make(program: Program) -> jax.stages.Compiled:
        compiled = maker(program)
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return compiled

    usual = os.getpriority(os.PRIO_PROCESS, 0)
    pool = ProgramPool(make, PROGRAMS[:2], num_threads=1)
    assert maker.begun.acquire(timeout=TIMEOUT_S)
    pool.give_way()
    maker.gate.set()
    pool.finish(timeout_s=TIMEOUT_S)
    assert priorities == [usual, min(usual + BACKGROUND_NICENESS, LEAST_NICENESS)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual


def test_a_process_ends_after_the_program_under_way() -> None:
    script = (
        "import time\n"
        "from jaxserve.execution.program_pool import ProgramPool\n"
        "def make(number):\n"
        "    print(number, flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return number\n"
        "ProgramPool(make, range(1000), num_threads=1).get(0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert found.stdout.split()[0] == "0"
    assert len(found.stdout.split()) < 100  # of a thousand, on a machine however busy
    assert found.stderr == ""
