"""JAX compilation: the persistent cache, and counters of unexpected compilations."""

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
    """Store compiled programs in `folder` (default: jaxserve/xla in the user's cache folder).

    JAX keys entries by program, options, versions and device, so engines can share a folder.
    """
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "jaxserve" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Cache every program: compiling a hundred cheap ones is slow too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compile without the persistent cache inside the block.

    XLA for CPUs drops the machine code when it serializes a program loaded from the cache.
    """
    was_enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was_enabled)
        compilation_cache.reset_cache()


class CompilationCounter:
    """Counts programs compiled, or loaded from JAX's cache, by this process.

    Call `mark()` after warm-up; `since_mark` should stay 0 afterwards. Compilations inside
    `planned()` are not counted, including those of other engines' counters.
    """

    # Shared by all counters, because each one sees every compilation of the process.
    _planned = threading.local()

    def __init__(self) -> None:
        self._count = 0
        self._mark = 0
        self.seconds = 0.0  # seconds of compiling or loading since the process began
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_for_hits)

    @contextmanager
    def planned(self) -> Iterator["Planned"]:
        """Expect compilations on this thread inside the block, and yield their origin."""
        self._planned.block = block = Planned()
        try:
            yield block
        finally:
            self._planned.block = None

    # JAX calls both listeners on the thread that compiles.

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
        """Restart the count."""
        self._mark = self._count

    @property
    def since_mark(self) -> int:
        """Programs compiled since `mark()`."""
        return self._count - self._mark


@dataclass(slots=True)
class Planned:
    """Result of expected compilations. is_from_cache: at least one came from the cache."""

    is_from_cache: bool = False
