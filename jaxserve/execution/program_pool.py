"""Pool of an engine's programs, compiled on background threads.

XLA compiles without the GIL, so weights load and requests are served meanwhile. Tracing, about a
tenth of the time, holds the GIL. The threads lower their priority once the engine serves.
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

# Niceness of a background thread relative to the process.
BACKGROUND_NICENESS = 10
LEAST_NICENESS = 19


class ProgramPool:
    """Compiled programs. Those of `order` are compiled ahead, others on first use.

    make: loads or compiles one program; called from several threads at once. The threads end when
    all programs are made, when the pool is closed, or when the main thread has ended. Each finishes
    its current program, because Python cannot exit during a compilation (`leave` can). on_finish:
    called on a compiling thread after the last program of `order`, even if it failed.
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
        # Guarded by the condition's lock, except reads of `_made`.
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
        """Number of programs made so far; it only grows."""
        return len(self._made)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller of `get` waits for a program."""
        return self._num_awaited > 0

    def has(self, program: Program) -> bool:
        """Return whether plans may use a program now. True for all if `order` was empty."""
        return self._is_lazy or program in self._made

    def get(self, program: Program) -> jax.stages.Compiled:
        """Return a program, made on this thread if necessary; raises the errors of `make`."""
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
        """Make the remaining programs at low priority."""
        with self._changed:
            self._is_background = True

    def finish(self, *, timeout_s: float | None = None) -> None:
        """Wait until all programs are made; raises the errors of `make`."""
        for thread in self._threads:
            thread.join(timeout_s)
        with self._changed:
            for error in self._failed.values():
                raise error

    def close(self) -> None:
        """Cancel waiting programs, and wait for those under way."""
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
        """Make a program that this thread has marked as under way."""
        compiled, failure = None, None
        try:
            compiled = self._make(program)
        except Exception as error:
            failure = error
            logger.exception("failed to make program %s", name_of(program))
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
    """Return the number of programs to make at once; XLA uses several cores for each."""
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(8, num_cores // 2))


def _give_way() -> None:
    """Lower the priority of the current thread, where the operating system can."""
    if sys.platform == "linux":
        # Never raise the priority above the process's, which needs a privilege.
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + BACKGROUND_NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, LEAST_NICENESS))
