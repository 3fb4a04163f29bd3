"""The small layers: products, norms, lookup."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.layers.norm import rms_norm
from jaxserve.quantization import WeightSpec, packed
from pallas_kernels import packed_linear
from pallas_kernels.targets import CPU


def test_einsum_keeps_the_dtype_of_the_activations() -> None:
    x, weight = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2, 5), jnp.bfloat16)
    product = einsum("td,dhk->thk", x, weight, ALL_ROWS)
    assert (product.shape, product.dtype) == ((3, 2, 5), jnp.bfloat16)


def test_einsum_gives_float32_where_asked_and_does_not_round_on_the_way() -> None:
    # 256 + 1 is 256 in bfloat16.
    x = jnp.array([[256.0, 1.0]], jnp.bfloat16)
    product = einsum("td,dv->tv", x, jnp.ones((2, 1), jnp.bfloat16), ALL_ROWS, dtype=jnp.float32)
    assert product.dtype == jnp.float32
    assert product.item() == 257.0


def test_packed_products_skip_padding_rows() -> None:
    x, weight = jnp.ones((5, 4)), jnp.ones((4, 3))
    packed_linear.check(CPU, weight.dtype)
    spec = WeightSpec(("embed", "ffw"), (4, 3), summed=("embed",))
    matrix = packed.pack(weight, spec, dtype="float32", sharding=None)

    @jax.jit
    def products(num_rows: jax.Array) -> tuple[jax.Array, ...]:
        rows = Rows(num_rows)
        some = einsum("td,df->tf", x, matrix, rows), einsum("td,df->tf", x, weight, rows)
        return *some, einsum("td,df->tf", x, matrix, ALL_ROWS)

    some, of_array, whole = products(jnp.asarray(2))
    assert_allclose(some, 4 * np.array([1, 1, 0, 0, 0])[:, None] * np.ones(3))
    assert_allclose(of_array, np.full((5, 3), 4.0))
    assert_allclose(whole, np.full((5, 3), 4.0))


def test_packed_products_refuse_another_order_of_axes() -> None:
    x, weight = jnp.ones((5, 4)), jnp.ones((4, 3, 2))
    packed_linear.check(CPU, weight.dtype)
    spec = WeightSpec(("embed", "gate_up", "ffw"), (4, 3, 2), summed=("embed",))
    matrix = packed.pack(weight, spec, dtype="float32", sharding=None)
    assert einsum("td,dpf->tpf", x, matrix, ALL_ROWS).shape == (5, 3, 2)
    with pytest.raises(AssertionError, match="cannot compute"):
        einsum("td,dpf->tfp", x, matrix, ALL_ROWS)


def test_rms_norm_gives_unit_mean_square_times_the_weight() -> None:
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32) * 100
    weight = np.linspace(0.5, 2.0, 64, dtype=np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True)) * weight
    assert_allclose(rms_norm(jnp.array(x), jnp.array(weight), eps=1e-6), expected, rtol=1e-5)


def test_rms_norm_squares_in_float32() -> None:
    # 3e2 squared is beyond float16.
    x = jnp.full((1, 8), 3e2, jnp.float16)
    normed = rms_norm(x, jnp.ones(8, jnp.float16), eps=1e-6)
    assert normed.dtype == jnp.float16
    assert_allclose(normed, np.ones((1, 8)))


def test_embed_looks_rows_up_and_makes_nan_of_an_id_outside() -> None:
    table = jnp.arange(6.0).reshape(3, 2)
    rows = embed(table, jnp.array([2, 0, 3]), ALL_ROWS)
    assert_allclose(rows, [[4.0, 5.0], [0.0, 1.0], [np.nan, np.nan]])
