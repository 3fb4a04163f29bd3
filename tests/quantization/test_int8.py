"""int8 weights: close to the matrix they stand for, whatever its axes, tokens and devices."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve import LLM, SamplingParams
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, einsum
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import abstract_params, bind, config_from_hf, random_params
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout
from jaxserve.quantization.int8 import METHOD, Int8Matrix, quantize
from tests.goldens.checkpoints import tiny_config, write_checkpoint

RNG = np.random.default_rng(3)
# Specs of the model, shapes of the matrix, and the axes that are summed over.
PRODUCTS = {
    "td,dgpk->tgpk": ((24, 2, 4, 8), (0,)),
    "thk,hkd->td": ((4, 6, 32), (0, 1)),
    "td,vd->tv": ((40, 24), (1,)),
}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def activations(spec: str, weight: jax.Array, num_tokens: int) -> jax.Array:
    left, right = spec.split("->", maxsplit=1)[0].split(",")
    sizes = dict(zip(right, weight.shape, strict=True))
    return normal(num_tokens, *(sizes[letter] for letter in left[1:]))


def test_rounding_errs_by_half_a_scale_at_most() -> None:
    weight = normal(16, 3, 5) * jnp.asarray([1e-3, 1.0, 1e3])[:, None]
    matrix = quantize(weight, (0,))
    assert matrix.values.dtype == jnp.int8
    assert matrix.scales.shape == (3, 5)
    error = jnp.abs(matrix.values * matrix.scales - weight)
    assert jnp.all(error <= matrix.scales * 0.5001)


def test_a_channel_of_zeros_stays_zeros() -> None:
    matrix = quantize(normal(8, 4).at[:, 2].set(0.0), (0,))
    product = einsum("td,df->tf", normal(3, 8), matrix, ALL_ROWS)
    np.testing.assert_array_equal(product[:, 2], 0.0)
    assert jnp.all(jnp.isfinite(product))


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 33])
@pytest.mark.parametrize("spec", PRODUCTS)
def test_products_are_those_of_the_rounded_numbers(spec: str, num_tokens: int) -> None:
    shape, summed = PRODUCTS[spec]
    weight = normal(*shape)
    matrix, x = quantize(weight, summed), activations(spec, weight, num_tokens)

    product = einsum(spec, x, matrix, ALL_ROWS)

    largest = jnp.max(jnp.abs(x), axis=range(1, x.ndim), keepdims=True) / 127
    scales = jnp.expand_dims(matrix.scales, summed)
    expected = jnp.einsum(spec, jnp.round(x / largest) * largest, matrix.values * scales)
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)
    exact = jnp.einsum(spec, x, weight)
    assert jnp.linalg.norm(product - exact) < 0.02 * jnp.linalg.norm(exact)


def test_a_token_that_is_not_finite_spoils_no_other() -> None:
    x = normal(9, 16)
    matrix = quantize(normal(16, 5), (0,))
    for bad in (jnp.nan, jnp.inf):
        spoiled = einsum("td,df->tf", x.at[4, 3].set(bad), matrix, ALL_ROWS)
        assert not jnp.any(jnp.isfinite(spoiled[4]))
        others = np.arange(9) != 4
        np.testing.assert_array_equal(
            spoiled[others], einsum("td,df->tf", x, matrix, ALL_ROWS)[others]
        )


def test_rows_of_a_quantized_table_are_looked_up() -> None:
    table = normal(10, 6).astype(jnp.bfloat16)
    found = embed(quantize(table, (1,)), jnp.asarray([3, 9, 10]), ALL_ROWS)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found[:2].astype(jnp.float32), table[jnp.asarray([3, 9])].astype(jnp.float32), atol=0.03
    )
    assert jnp.all(jnp.isnan(found[2]))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_loaded_parameters_are_what_was_planned(tmp_path: Path, num_devices: int) -> None:
    hf = tiny_config("qwen3")
    config, mesh = config_from_hf(hf), make_mesh(num_devices)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, hf))
    layout = WeightLayout(sharding=ShardingPlan(mesh), method=METHOD)
    loaded = load_params(checkpoint, config, layout)
    planned = abstract_params(config, layout)

    def agree(array: jax.Array, plan: jax.ShapeDtypeStruct) -> bool:
        is_alike = array.shape == plan.shape and array.dtype == plan.dtype
        return bool(is_alike and array.sharding == plan.sharding)

    assert all(jax.tree.leaves(jax.tree.map(agree, loaded, planned)))
    plain = load_params(checkpoint, config, WeightLayout())
    ids = jnp.arange(12)
    exact = jax.jit(bind(config, plain))(ids)
    near = jax.jit(bind(config, loaded))(ids)
    assert jnp.linalg.norm(near - exact) < 0.1 * jnp.linalg.norm(exact)


def test_matrices_are_quantized_and_vectors_are_not() -> None:
    config = config_from_hf(tiny_config("qwen2"))
    params = random_params(config, WeightLayout(method=METHOD), seed=0)
    layer = params["layers"][0]
    assert isinstance(layer["mlp"]["down"], Int8Matrix)
    assert isinstance(params["embedding"], Int8Matrix)
    assert layer["attention"]["qkv_bias"].dtype == layer["mlp_norm"]["weight"].dtype == jnp.float32


def test_the_embedded_model_still_answers() -> None:
    llm = LLM(quantization="int8", dtype="float32", max_num_seqs=2, max_model_len=256)
    chats = [
        [{"role": "user", "content": text}] for text in ("What is the capital of France?", "Hello!")
    ]
    outputs = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=24))
    assert [output.outputs[0].text for output in outputs] == [
        "The capital of France is Paris.",
        "Hi there! What can I do for you?",
    ]
