"""Compilation: kept between starts, and counted, because one under traffic is a bug."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_HIT_EVENT = "/jax/compilation_cache/cache_hits"


def use_compilation_cache(folder: Path | None = None) -> Path:
    """Keep compiled programs in `folder` (default: jaxserve/xla in the user's cache folder).

    JAX keys its entries by program, options, versions and device, so one folder serves all.
    """
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "jaxserve" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Every program: a start that compiles a hundred cheap ones is slow too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile everything anew within.

    XLA for CPUs serializes a program that came out of the cache without its machine code.
    """
    was_enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once, and remembers
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was_enabled)
        compilation_cache.reset_cache()


class CompilationCounter:
    """Counts the programs this process has compiled (or fetched from the cache) since it began.

    `mark()` at the end of warm-up; from then on `since_mark` should stay 0. What is compiled inside
    of `planned()`, of this counter or another engine's, was meant to be, and is not counted.
    """

    # Of all counters: each of them hears of all that the process compiles.
    _planned = threading.local()

    def __init__(self) -> None:
        self._count = 0
        self._mark = 0
        self.seconds = 0.0  # spent compiling, or fetching, since the process began
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_for_hits)

    @contextmanager
    def planned(self) -> Iterator["Planned"]:
        """Expect compilations on this thread within; tells of them when they are over."""
        self._planned.block = block = Planned()
        try:
            yield block
        finally:
            self._planned.block = None

    # JAX calls both on the thread that compiles.

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.seconds += duration_secs
            if self._block() is None:
                self._count += 1

    def _listen_for_hits(self, event: str, **_: str | int) -> None:
        block = self._block()
        if event == _HIT_EVENT and block is not None:
            block.is_from_cache = True

    def _block(self) -> "Planned | None":
        return getattr(self._planned, "block", None)

    def mark(self) -> None:
        """Count from here."""
        self._mark = self._count

    @property
    def since_mark(self) -> int:
        """Programs compiled since `mark()`."""
        return self._count - self._mark


@dataclass(slots=True)
class Planned:
    """What came of compilations that were meant to be. is_from_cache: any of it was kept."""

    is_from_cache: bool = False
