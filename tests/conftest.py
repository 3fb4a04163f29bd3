"""Common fixtures: four virtual CPU devices, a hypothesis profile, and a small model."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.data import checkpoint

# Set before any test imports jax, and without importing it: host tests must stay free of it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

# A shared or busy machine must not turn a slow example into a failure; in CI the same examples run
# every time, so that a red build can be repeated.
settings.register_profile("laptop", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


@pytest.fixture
def anyio_backend() -> str:
    """Run `@pytest.mark.anyio` tests on asyncio, the loop that uvicorn serves on."""
    return "asyncio"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Take back what a command configures: its stream is the test's, and closes with it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = [each for each in root.handlers if each in handlers]
    root.setLevel(level)


@pytest.fixture(scope="session")
def llm() -> Any:
    """A small model offline, of four slots; its queue is shorter than what tests give at once."""
    from jaxserve import LLM  # noqa: PLC0415 (with jax)

    return LLM(
        str(checkpoint("stories260K-hf")),
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_queued_requests=3,
        scheduling_policy="priority",
    )
