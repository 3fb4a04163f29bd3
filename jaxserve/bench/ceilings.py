"""What a device can do at best, measured in the same run as what is held against it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import jax
import jax.numpy as jnp


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates of one device: bytes/s of a copy, read and written, and FLOP/s of a large product."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float

    def line(self) -> str:
        """Return both in units that people use."""
        return (
            f"copy {self.copy_bytes_per_s / 1e9:.0f} GB/s (read + written),"
            f" matmul {self.matmul_flops_per_s / 1e12:.2f} TFLOP/s"
        )


def measure_ceilings() -> Ceilings:
    """Measure JAX's first device on random data, in the dtype that models have there.

    The copy moves 2 GiB on accelerators (256 MiB on CPUs), many times what a cache holds; the
    product is of bfloat16 matrices of 8192 (float32 of 2048 on CPUs).
    """
    is_cpu = jax.default_backend() == "cpu"
    key = jax.random.key(0)
    data = jax.random.bits(key, ((1 << 28) // (8 if is_cpu else 1),), jnp.uint32)
    size, dtype = (2048, jnp.float32) if is_cpu else (8192, jnp.bfloat16)
    a, b = (jax.random.normal(k, (size, size), dtype) for k in jax.random.split(key))
    copy_s = seconds_per_call(jax.jit(lambda x: x + 1), data)
    matmul_s = seconds_per_call(jax.jit(jnp.matmul), a, b)
    return Ceilings(
        copy_bytes_per_s=2 * data.nbytes / copy_s, matmul_flops_per_s=2 * size**3 / matmul_s
    )


def seconds_per_call(
    function: Callable[..., object], *args: object, calls: int = 10, rounds: int = 5
) -> float:
    """Return the seconds of a call, the median of rounds of calls that follow without a pause.

    Two calls before the clock starts are for compilation and for clocks that idled.
    """
    jax.block_until_ready([function(*args) for _ in range(2)])
    seconds: list[float] = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        result: object = None
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start_s) / calls)
    return median(seconds)
