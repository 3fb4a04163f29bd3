"""Packed matrices: the numbers of the matrix they stand for, whatever its shape, kind and rows."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels import Unsupported, packed_linear
from pallas_kernels.packed_linear import PackedMatrix, api
from pallas_kernels.targets import CPU, TARGETS
from tests.kernels.conftest import Recompile

try:
    packed_linear.check(CPU, "float32")
except Unsupported as reason:
    pytest.skip(f"packed matrices: {reason}", allow_module_level=True)

RNG = np.random.default_rng(5)
# Sizes of what is summed, and of what is kept: whole panels and not, groups of four and not, rows
# that lie a multiple of 4 KiB apart.
SIZES = [
    ((64,), (96,)),
    ((30,), (33,)),
    ((7,), (1,)),
    ((3, 11), (2, 4, 5)),
    ((512,), (224,)),
    ((4096,), (40,)),
]
# One row, a tile's rows and one more, a block's and one more.
ROWS = (1, 2, 3, 6, 7, 14, 15, 29, 225)

type Floats = NDArray[np.floating[Any]]


def world(
    inputs: tuple[int, ...], channels: tuple[int, ...], kind: str, *, last: bool = False
) -> tuple[PackedMatrix, Floats]:
    """A packed matrix, and what it is as [inputs, channels]; last: what is summed comes last."""
    num_inputs, num_channels = int(np.prod(inputs)), int(np.prod(channels))
    scales = RNG.uniform(0.5, 2.0, channels).astype(np.float32) if kind == "int8" else None
    if scales is None:
        values = jnp.asarray(RNG.standard_normal((num_inputs, num_channels)), kind)
    else:
        values = jnp.asarray(RNG.integers(-127, 128, (num_inputs, num_channels)), jnp.int8)
    exact = np.asarray(values, np.float64) * (1 if scales is None else scales.reshape(-1))
    matrix = values.T.reshape(channels + inputs) if last else values.reshape(inputs + channels)
    first_summed = len(channels) if last else 0
    summed = tuple(range(first_summed, first_summed + len(inputs)))
    packed = packed_linear.pack(
        matrix, summed, scales=None if scales is None else jnp.asarray(scales), dtype="float32"
    )
    return packed, exact


def rounded(x: Floats) -> Floats:
    """What int8 leaves of rows."""
    scales = (np.abs(x).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    scales = np.where(scales == 0, np.float32(1), scales)
    result: Floats = np.round(x / scales).astype(np.float64) * scales
    return result


@pytest.mark.parametrize("kind", packed_linear.KINDS)
@pytest.mark.parametrize(("inputs", "channels"), SIZES)
def test_products_are_those_of_the_matrix(
    inputs: tuple[int, ...], channels: tuple[int, ...], kind: str
) -> None:
    packed, exact = world(inputs, channels, kind)
    multiply = jax.jit(packed_linear.multiply)
    for num_rows in ROWS:
        x = RNG.standard_normal((num_rows, exact.shape[0])).astype(np.float32)
        product = multiply(jnp.asarray(x.reshape(num_rows, *inputs)), packed)
        assert product.shape == (num_rows, *channels)
        expected = (rounded(x) if kind == "int8" else x.astype(np.float64)) @ exact
        error = np.linalg.norm(np.asarray(product).reshape(num_rows, -1) - expected)
        assert error < 5e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", packed_linear.KINDS)
@pytest.mark.parametrize("num_rows", [-1, 0, 1, 5, 16, 17])
def test_rows_of_padding_come_back_as_zeros(kind: str, num_rows: int) -> None:
    packed, _ = world((20,), (40,), kind)
    x = jnp.asarray(RNG.standard_normal((16, 20)), jnp.float32)
    whole = packed_linear.multiply(x, packed)
    product = packed_linear.multiply(x, packed, num_rows=jnp.asarray(num_rows))
    live = max(num_rows, 0)
    np.testing.assert_allclose(product[:live], whole[:live], rtol=1e-6, atol=1e-6)
    assert not np.any(product[live:])


@pytest.mark.parametrize("kind", packed_linear.KINDS)
def test_what_is_summed_may_come_last(kind: str) -> None:
    packed, exact = world((12,), (5, 8), kind, last=True)
    product = packed_linear.multiply(jnp.eye(12), packed)
    np.testing.assert_allclose(product.reshape(12, -1), exact, rtol=1e-6)


@pytest.mark.parametrize("kind", packed_linear.KINDS)
def test_rows_of_a_table_are_looked_up_and_nan_outside(kind: str) -> None:
    packed, exact = world((9,), (70,), kind, last=True)
    rows = packed_linear.take(packed, jnp.asarray([0, 69, 33, 70, -1]))
    np.testing.assert_array_equal(rows[:3], exact.T[[0, 69, 33]].astype(np.float32))
    assert np.isnan(rows[3:]).all()


@pytest.mark.parametrize("kind", packed_linear.KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_no_other(kind: str, bad: float) -> None:
    packed, _ = world((16,), (40,), kind)
    x = jnp.asarray(RNG.standard_normal((9, 16)), jnp.float32)
    spoiled = packed_linear.multiply(x.at[4, 3].set(bad), packed)
    assert not np.isfinite(spoiled[4]).any()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(spoiled[others], packed_linear.multiply(x, packed)[others])


def test_rows_of_zeros_and_the_greatest_numbers_of_int8_are_exact() -> None:
    packed, exact = world((255,), (32,), "int8")
    x = np.stack([np.zeros(255), np.full(255, 127), np.full(255, -127)]).astype(np.float32)
    product = packed_linear.multiply(jnp.asarray(x), packed)
    np.testing.assert_allclose(product, x @ exact, rtol=1e-6)


def test_what_is_planned_is_what_is_made() -> None:
    for kind in packed_linear.KINDS:
        packed, _ = world((10, 3), (41,), kind)
        spec = packed_linear.packed_spec((10, 3), (41,), kind=kind, dtype="float32")
        assert (spec.panels.shape, spec.panels.dtype) == (packed.panels.shape, packed.panels.dtype)
        assert replace(spec, panels=packed.panels) == packed
        assert packed.size == 30 * 41


def test_processors_with_less_compute_the_same(recompile: Recompile) -> None:
    recompile(api.SOURCE, api.FUNCTIONS)
    for kind in packed_linear.KINDS:
        packed, exact = world((30,), (41,), kind)
        x = RNG.standard_normal((17, 30)).astype(np.float32)
        expected = (rounded(x) if kind == "int8" else x.astype(np.float64)) @ exact
        product = packed_linear.multiply(jnp.asarray(x), packed)
        assert np.linalg.norm(product - expected) < 1e-6 * np.linalg.norm(expected)


def test_what_cannot_be_packed_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="needs a CPU, got h200"):
        packed_linear.check(TARGETS["h200"], "float32")
    with pytest.raises(Unsupported, match="multiplies by float32, bfloat16, int8, not by float16"):
        packed_linear.check(CPU, "float16")
