"""What every test shares: four virtual CPU devices and a hypothesis profile."""

import os

import pytest
from hypothesis import settings

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
