"""Measurements of a device's ceilings, of which the best one counts."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxserve.bench import ceilings
from jaxserve.bench.ceilings import Ceilings, measure_ceilings
from pallas_kernels import Unsupported, packed_linear
from pallas_kernels.packed_linear import PackedMatrix
from pallas_kernels.targets import CPU


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sum read 32 KiB, and products be of matrices of 16 and of panels of 64 inputs."""
    for name, value in {
        "_CPU_BYTES": 1 << 15,
        "_CPU_SIZE": 16,
        "_PACKED_INPUTS": 64,
        "_PACKED_ROWS": 4,
    }.items():
        monkeypatch.setattr(ceilings, name, value)


def took(monkeypatch: pytest.MonkeyPatch, seconds_of: Callable[..., float]) -> None:
    """Compute as ever, but let the clock say what `seconds_of` makes of the arguments."""

    def best_s(function: Callable[..., object], *args: Any) -> float:
        jax.block_until_ready(function(*args))
        return seconds_of(*args)

    monkeypatch.setattr(ceilings, "_best_s", best_s)


def test_on_a_cpu_memory_is_what_a_sum_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    took(monkeypatch, lambda *_: 1.0)
    assert measure_ceilings() == Ceilings(bytes_per_s=1 << 15, flops_per_s=2 * 16**3)


def test_products_in_int8_count_for_weights_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    took(monkeypatch, lambda *args: 0.25 if args[0].dtype == "int8" else 1.0)
    assert measure_ceilings(quantization="int8").flops_per_s == 4 * measure_ceilings().flops_per_s


@pytest.mark.parametrize("kind", list(packed_linear.KINDS))
def test_products_with_packed_matrices_count_where_they_are_faster(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        packed_linear.check(CPU, kind)
    except Unsupported as reason:
        pytest.skip(f"packed matrices: {reason}")
    plain = measured(monkeypatch, packed_s=1e9)
    assert measured(monkeypatch, packed_s=1e9, packed=kind) == plain
    faster = measured(monkeypatch, packed_s=1e-9, packed=kind)
    assert faster.bytes_per_s > plain.bytes_per_s
    assert faster.flops_per_s > plain.flops_per_s


def measured(
    monkeypatch: pytest.MonkeyPatch, *, packed_s: float, packed: str | None = None
) -> Ceilings:
    """Return ceilings where products with packed matrices take so long, and all else a second."""
    took(monkeypatch, lambda *args: packed_s if isinstance(args[-1], PackedMatrix) else 1.0)
    return measure_ceilings(packed=packed)


def test_a_line_has_units_that_people_use() -> None:
    line = Ceilings(bytes_per_s=3.4e10, flops_per_s=8.1e11).line()
    assert line == "memory 34 GB/s, matmul 0.81 TFLOP/s"
