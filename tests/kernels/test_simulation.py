"""Races that a kernel has are found: what the tests of the backends rely on."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

X = jax.ShapeDtypeStruct((64, 128), jnp.float32)


def test_read_before_a_copy_has_landed_is_found_on_tpus(capfd: pytest.CaptureFixture[str]) -> None:
    def body(x: Any, out: Any, buffer: Any, semaphore: Any) -> None:
        copy = pltpu.make_async_copy(x, buffer, semaphore)
        copy.start()
        out[...] = buffer[...]
        copy.wait()

    racy = pl.pallas_call(
        body,
        out_shape=X,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM(X.shape, X.dtype), pltpu.SemaphoreType.DMA],
        interpret=pltpu.InterpretParams(detect_races=True),
    )
    jax.block_until_ready(racy(jnp.ones(X.shape)))
    assert "RACE DETECTED" in capfd.readouterr().out


def test_read_before_a_copy_has_landed_is_found_on_gpus(capfd: pytest.CaptureFixture[str]) -> None:
    def body(x: Any, out: Any, buffer: Any, barrier: Any) -> None:
        plgpu.copy_gmem_to_smem(x, buffer, barrier)
        out[...] = buffer[...]
        plgpu.barrier_wait(barrier)

    racy = plgpu.kernel(
        body,
        out_type=X,
        scratch_types=[plgpu.SMEM(X.shape, X.dtype), plgpu.Barrier()],
        interpret=plgpu.InterpretGPUParams(detect_races=True),
    )
    jax.block_until_ready(racy(jnp.ones(X.shape)))
    assert "RACE DETECTED" in capfd.readouterr().out
