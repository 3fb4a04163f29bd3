"""Peak rates of a device, measured in the same run as the results compared with them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import jax
import jax.numpy as jnp

from pallas_kernels import packed_linear
from pallas_kernels.packed_linear import PackedMatrix

# Sizes far above those of caches, and matmuls large enough for full speed. On a CPU also a matrix
# whose panels fit into a core's cache.
_BYTES, _SIZE = 1 << 31, 8192
_CPU_BYTES, _CPU_SIZE = 1 << 28, 2048
_PACKED_INPUTS, _PACKED_ROWS = 4096, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates of one device: bytes/s of its memory, and FLOP/s of a large matmul."""

    bytes_per_s: float
    flops_per_s: float

    def line(self) -> str:
        """Return both as text, in GB/s and TFLOP/s."""
        return (
            f"memory {self.bytes_per_s / 1e9:.0f} GB/s,"
            f" matmul {self.flops_per_s / 1e12:.2f} TFLOP/s"
        )


def measure_ceilings(*, quantization: str | None = None, packed: str | None = None) -> Ceilings:
    """Measure JAX's first device with random data and return the best rates.

    Memory: the bytes of a copy, or on CPUs of a sum, because copies are slow there and steps write
    little. Matmuls: bfloat16, on CPUs float32.

    quantization: "int8" also measures int8 matmuls. packed: kind of packed matrices (`LinearPlan`);
    if set, also measures matmuls with them, and with a single row as memory bandwidth.
    """
    if jax.default_backend() == "cpu":
        size, dtype, memory = _CPU_SIZE, "float32", [_read_rate(_CPU_BYTES)]
    else:
        size, dtype, memory = _SIZE, "bfloat16", [_copy_rate(_BYTES)]
    products = [_product_rate(size, dtype)]
    if quantization == "int8":
        products.append(_product_rate(size, "int8"))
    if packed is not None:
        matrix = _packed_matrix(packed, _CPU_BYTES)
        rows = _random((_PACKED_ROWS, *matrix.inputs), "float32")
        multiply = jax.jit(packed_linear.multiply)
        memory.append(matrix.panels.nbytes / _best_s(multiply, rows[:1], matrix))
        products.append(2 * _PACKED_ROWS * matrix.size / _best_s(multiply, rows, matrix))
    return Ceilings(bytes_per_s=max(memory), flops_per_s=max(products))


def seconds_per_call(
    function: Callable[..., object], *args: object, calls: int = 10, rounds: int = 5
) -> float:
    """Return the seconds of a call, the median of rounds of calls that follow without a pause.

    Two calls before the clock starts are for compilation and for clocks that idled.
    """
    return median(_round_seconds(function, *args, calls=calls, rounds=rounds))


def _best_s(function: Callable[..., object], *args: object) -> float:
    """Return the seconds of a call in the fastest round."""
    return min(_round_seconds(function, *args, calls=3, rounds=7))


def _round_seconds(
    function: Callable[..., object], *args: object, calls: int, rounds: int
) -> list[float]:
    jax.block_until_ready([function(*args) for _ in range(2)])
    seconds: list[float] = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        result: object = None
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start_s) / calls)
    return seconds


def _read_rate(num_bytes: int) -> float:
    numbers = _random((num_bytes // 4,), "float32")
    return num_bytes / _best_s(jax.jit(jnp.sum), numbers)


def _copy_rate(num_bytes: int) -> float:
    words = jax.random.bits(jax.random.key(0), (num_bytes // 4,), jnp.uint32)
    return 2 * num_bytes / _best_s(jax.jit(lambda x: x + 1), words)


def _product_rate(size: int, dtype: str) -> float:
    """Return the FLOP/s of a matmul of square matrices. int8 accumulates in int32, as in models."""
    a, b = (_random((size, size), dtype, seed) for seed in (0, 1))
    wide = "int32" if dtype == "int8" else dtype
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=wide))
    return 2 * size**3 / _best_s(multiply, a, b)


def _packed_matrix(kind: str, num_bytes: int) -> PackedMatrix:
    channels = num_bytes // (_PACKED_INPUTS * packed_linear.KINDS[kind])
    scales = jnp.ones(channels) if kind == "int8" else None
    values = _random((_PACKED_INPUTS, channels), kind)
    return packed_linear.pack(values, (0,), scales=scales, dtype="float32")


def _random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    key = jax.random.key(seed)
    if dtype == "int8":
        return jax.random.bits(key, shape, jnp.uint8).view(jnp.int8)
    return jax.random.normal(key, shape, dtype)
