"""What building an engine says when the machine does not play along."""

import jax
import jax.numpy as jnp
import pytest

from jaxserve.build import _explaining_out_of_memory
from jaxserve.errors import MemoryPlanError


def test_running_out_of_memory_says_what_to_change() -> None:
    wanted = pytest.raises(MemoryPlanError, match="Lower gpu_memory_utilization")
    with wanted, _explaining_out_of_memory():
        jnp.zeros(1 << 50, jnp.uint8).block_until_ready()


def test_other_errors_of_the_device_stay_what_they_are() -> None:
    wanted = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL")
    with wanted, _explaining_out_of_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: lost")
