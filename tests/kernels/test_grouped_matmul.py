"""Grouped matmuls: each row multiplied by its group's matrix, and no other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import grouped_matmul, reference

RNG = np.random.default_rng(7)
# Sizes of groups: empty ones, one row, more than a tile, all rows, padding at the end.
SIZES = [
    (0, 1, 0, 5, 2),
    (150, 0, 3, 40, 7),
    (0, 0, 0, 0, 200),
    (0, 0, 0, 0, 0),
    (8, 8, 8, 8, 8),
]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("num_rows", [200, 240])
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_those_of_each_rows_matrix(sizes: tuple[int, ...], num_rows: int) -> None:
    x, matrices, counts = normal(num_rows, 12), normal(5, 12, 9), jnp.asarray(sizes)
    product = jax.jit(grouped_matmul)(x, matrices, counts)
    expected = reference.grouped_matmul(x, matrices, counts, dtype=jnp.float32)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)
    assert not np.any(product[sum(sizes) :])


def test_matrices_of_empty_groups_are_not_read() -> None:
    matrices = normal(5, 12, 9).at[jnp.array([0, 2])].set(jnp.nan)
    product = grouped_matmul(normal(8, 12), matrices, jnp.asarray((0, 1, 0, 5, 2)))
    assert jnp.all(jnp.isfinite(product))


def test_integers_are_summed_exactly() -> None:
    x = jnp.asarray(RNG.integers(-127, 128, (20, 64)), jnp.int8)
    matrices = jnp.asarray(RNG.integers(-127, 128, (3, 64, 5)), jnp.int8)
    product = grouped_matmul(x, matrices, jnp.asarray((9, 0, 11)), dtype=jnp.int32)
    wide, wider = np.asarray(x, np.int32), np.asarray(matrices, np.int32)
    np.testing.assert_array_equal(product[:9], wide[:9] @ wider[0])
    np.testing.assert_array_equal(product[9:], wide[9:] @ wider[2])


def test_gradients_are_those_of_the_reference() -> None:
    x, matrices, sizes = normal(40, 6), normal(5, 6, 4), jnp.asarray((0, 20, 1, 0, 12))
    weights = normal(40, 4)

    def loss(x: jax.Array, matrices: jax.Array) -> jax.Array:
        return jnp.sum(weights * grouped_matmul(x, matrices, sizes))

    def expected(x: jax.Array, matrices: jax.Array) -> jax.Array:
        product = reference.grouped_matmul(x, matrices, sizes, dtype=jnp.float32)
        return jnp.sum(weights * product)

    found, wanted = (jax.grad(each, argnums=(0, 1))(x, matrices) for each in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_batch_of_them_is_mapped() -> None:
    x, matrices = normal(3, 16, 6), normal(4, 6, 5)
    sizes = jnp.asarray([(4, 4, 4, 4), (16, 0, 0, 0), (0, 3, 0, 9)])
    product = jax.vmap(grouped_matmul, in_axes=(0, None, 0))(x, matrices, sizes)
    for one, rows, counts in zip(product, x, sizes, strict=True):
        expected = reference.grouped_matmul(rows, matrices, counts, dtype=jnp.float32)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_the_work_does_not_grow_with_the_number_of_groups() -> None:
    def flops(num_groups: int) -> float:
        sizes = jax.ShapeDtypeStruct((num_groups,), jnp.int32)
        x = jax.ShapeDtypeStruct((64, 128), jnp.float32)
        matrices = jax.ShapeDtypeStruct((num_groups, 128, 128), jnp.float32)
        analysis: Any = jax.jit(grouped_matmul).lower(x, matrices, sizes).compile().cost_analysis()
        return float(analysis["flops"])

    assert flops(64) < 1.1 * flops(8)
