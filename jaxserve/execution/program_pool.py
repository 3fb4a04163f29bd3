"""An engine's programs, made on threads of their own: the first before it serves, others behind it.

XLA compiles without holding Python's lock, so weights load and requests are served meanwhile. What
is traced in Python does hold it, a tenth of the time; the threads give way where they can.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import jax

from jaxserve.execution.programs import Program, name_of

logger = logging.getLogger(__name__)

type Make = Callable[[Program], jax.stages.Compiled]

# How much less a thread in the background is worth to the operating system than the process.
BACKGROUND_NICENESS = 10
LEAST_NICENESS = 19


class ProgramPool:
    """Programs by name. Those of `order` are made unasked, the others when they are first needed.

    make: loads or compiles one; called on several threads at once. The threads end when everything
    is made, when the pool is closed, and when the main thread has ended, each after the program it
    is at: Python cannot end in the middle of a compilation (`leave` does). on_finish: called when
    the last of `order` was tried, on a thread that made one.
    """

    def __init__(
        self,
        make: Make,
        order: Iterable[Program] = (),
        *,
        num_threads: int | None = None,
        on_finish: Callable[[], None] = lambda: None,
    ) -> None:
        self._make = make
        self._on_finish = on_finish
        self._changed = threading.Condition()
        # All of these under the condition's lock, but that `_made` is read without it.
        self._waiting = deque(order)
        self._under_way: set[Program] = set()
        self._failed: dict[Program, Exception] = {}
        self._made: dict[Program, jax.stages.Compiled] = {}
        self._num_awaited = 0
        self._is_background = False
        self._is_lazy = not self._waiting
        self._threads = [
            threading.Thread(target=self._run, name=f"jaxserve-programs-{number}")
            for number in range(min(num_threads or default_threads(), len(self._waiting)))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_made(self) -> int:
        """How many programs there are; grows only."""
        return len(self._made)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller of `get` waits for a program to be made."""
        return self._num_awaited > 0

    def has(self, program: Program) -> bool:
        """Whether a program can be run now; where none are made unasked, after it is compiled."""
        return self._is_lazy or program in self._made

    def get(self, program: Program) -> jax.stages.Compiled:
        """Return a program, made here if nobody is at it; raises what making it has raised."""
        compiled = self._made.get(program)
        if compiled is not None:
            return compiled
        with self._awaited(), self._changed:
            self._changed.wait_for(lambda: program not in self._under_way)
            if program in self._made:
                return self._made[program]
            if program in self._failed:
                raise self._failed[program]
            if program in self._waiting:
                self._waiting.remove(program)
            self._under_way.add(program)
        with self._awaited():
            self._make_one(program)
        return self.get(program)

    @contextmanager
    def _awaited(self) -> Iterator[None]:
        with self._changed:
            self._num_awaited += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_awaited -= 1

    def give_way(self) -> None:
        """From now on make what is left in the background."""
        with self._changed:
            self._is_background = True

    def finish(self, *, timeout_s: float | None = None) -> None:
        """Wait until all is made; raises what making any of it has raised."""
        for thread in self._threads:
            thread.join(timeout_s)
        with self._changed:
            for error in self._failed.values():
                raise error

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        with self._changed:
            self._waiting.clear()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while threading.main_thread().is_alive():
            with self._changed:
                if not self._waiting:
                    return
                program = self._waiting.popleft()
                self._under_way.add(program)
                is_background = self._is_background
            if is_background:
                _give_way()
            self._make_one(program)

    def _make_one(self, program: Program) -> None:
        """Make a program that this thread has put under way."""
        compiled, failure = None, None
        try:
            compiled = self._make(program)
        except Exception as error:
            failure = error
            logger.exception("program %s could not be made", name_of(program))
        with self._changed:
            self._under_way.remove(program)
            if compiled is not None:
                self._made[program] = compiled
            if failure is not None:
                self._failed[program] = failure
            self._changed.notify_all()
            is_last = not (self._waiting or self._under_way or self._is_lazy)
        if is_last:
            self._on_finish()


def default_threads() -> int:
    """Programs to make at once: XLA itself takes more than one core for each."""
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(8, num_cores // 2))


def _give_way() -> None:
    """Lower the priority of this thread alone, where the operating system can."""
    if sys.platform == "linux":
        # Not below what the process has been given, which would take a privilege.
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + BACKGROUND_NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, LEAST_NICENESS))
