"""Compilation: kept between starts, and counted, because one under traffic is a bug."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


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

    `mark()` at the end of warm-up; from then on `since_mark` should stay 0.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mark = 0
        self.seconds = 0.0  # spent compiling, or fetching, since the process began
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            self._count += 1
            self.seconds += duration_secs

    def mark(self) -> None:
        """Count from here."""
        self._mark = self._count

    @property
    def since_mark(self) -> int:
        """Programs compiled since `mark()`."""
        return self._count - self._mark
