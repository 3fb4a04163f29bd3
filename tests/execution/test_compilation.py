"""Compiled programs are counted, and kept between starts."""

import os
import subprocess
import sys
from pathlib import Path

START = """
import jax
from jaxserve.execution.compilation import CompilationCounter, use_compilation_cache

print(use_compilation_cache())
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
counter = CompilationCounter()
x = jax.numpy.ones(8)
counter.mark()
jax.jit(lambda x: x * 3 + 1)(x)
print(counter.since_mark, len(hits))
"""


def start(cache_home: Path) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", START],
        env=os.environ | {"XDG_CACHE_HOME": str(cache_home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return found.stdout.split()


def test_a_second_start_fetches_what_the_first_compiled(tmp_path: Path) -> None:
    folder, compiled, num_hits = start(tmp_path)
    assert Path(folder) == tmp_path / "jaxserve" / "xla"
    assert (compiled, num_hits) == ("1", "0")
    _, compiled, num_hits = start(tmp_path)
    # Fetching counts too: it takes time that a request would wait for.
    assert compiled == "1"
    assert int(num_hits) >= 1
