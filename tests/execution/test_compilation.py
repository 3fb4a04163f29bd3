"""Compiled programs are counted, and kept between starts."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxserve.execution.compilation import CompilationCounter
from tests.data import checkpoint

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


def test_what_another_engine_plans_to_compile_is_not_counted() -> None:
    x = jnp.ones(7)
    ours, theirs = CompilationCounter(), CompilationCounter()

    def plan() -> None:
        with theirs.planned():
            jax.jit(lambda x: x * 3.0)(x)

    thread = threading.Thread(target=plan)
    thread.start()
    thread.join()
    assert (ours.since_mark, theirs.since_mark) == (0, 0)
    jax.jit(lambda x: x * 5.0)(x)
    assert (ours.since_mark, theirs.since_mark) == (1, 1)


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


BUILD = """
import sys
from jaxserve.build import build
from jaxserve.config.engine import EngineOptions
from jaxserve.planning.planner import plan_engine

small = {"max_num_seqs": 1, "max_num_batched_tokens": 2, "num_pages": 9, "max_model_len": 32}
loaded = build(plan_engine(EngineOptions(model=sys.argv[1], **small)))
loaded.programs.finish()
print(*sorted(program.origin for program in loaded.startup.programs))
"""


def test_a_second_start_compiles_no_program(tmp_path: Path) -> None:
    model = checkpoint("stories260K-hf")
    origins = []
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-c", BUILD, str(model)],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        origins.append(set(found.stdout.split()))
    assert origins == [{"compiled"}, {"cache"}]
