"""A model of packed matrices: the same model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import abstract_params, bind, config_from_hf, random_params
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout, find_method
from jaxserve.quantization.packed import Packed
from pallas_kernels.packed_linear import check
from pallas_kernels.targets import CPU
from tests.goldens.checkpoints import tiny_config, write_checkpoint
from tests.goldens.families import write_case

check(CPU, "float32")
IDS = jnp.arange(12)


@pytest.mark.parametrize("packed", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_arrays(tmp_path: Path, packed: str, *, tied: bool) -> None:
    hf = tiny_config("qwen3", tie_word_embeddings=tied)
    config, sharding = config_from_hf(hf), ShardingPlan(make_mesh(1))
    dtype = "bfloat16" if packed == "bfloat16" else "float32"
    method = find_method("int8" if packed == "int8" else None)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, hf))
    arrays = load_params(
        checkpoint, config, WeightLayout(dtype=dtype, sharding=sharding, method=method)
    )
    if packed == "bfloat16":  # kept as such, used as float32
        arrays = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), arrays)
    loaded = load_params(
        checkpoint, config, WeightLayout(sharding=sharding, method=method, packed=packed)
    )
    expected = jax.jit(bind(config, arrays))(IDS)
    found = jax.jit(bind(config, loaded))(IDS)
    if packed == "bfloat16":
        # Norms were rounded above, and are not here.
        assert jnp.linalg.norm(found - expected) < 1e-2 * jnp.linalg.norm(expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("packed", ["float32", "int8"])
def test_logits_of_experts_are_those_of_arrays(tmp_path: Path, packed: str) -> None:
    folder = write_case(tmp_path, "qwen3_moe", "two experts of six")
    checkpoint = Checkpoint.open(folder)
    config, method = (
        config_from_hf(checkpoint.hf_config),
        find_method("int8" if packed == "int8" else None),
    )
    arrays = load_params(checkpoint, config, WeightLayout(method=method))
    loaded = load_params(checkpoint, config, WeightLayout(method=method, packed=packed))
    assert isinstance(loaded["layers"][0]["mlp"]["experts"]["down"], Packed)
    assert isinstance(loaded["layers"][0]["mlp"]["router"]["weight"], jax.Array)
    expected = jax.jit(bind(config, arrays))(IDS)
    np.testing.assert_allclose(jax.jit(bind(config, loaded))(IDS), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_parameters_are_what_was_planned(quantization: str | None) -> None:
    config = config_from_hf(tiny_config("qwen2"))
    layout = WeightLayout(
        sharding=ShardingPlan(make_mesh(1)),
        packed=quantization or "float32",
        method=find_method(quantization),
    )
    planned = abstract_params(config, layout)
    drawn = random_params(config, layout, seed=0)

    def agree(array: jax.Array, plan: jax.ShapeDtypeStruct) -> bool:
        is_alike = array.shape == plan.shape and array.dtype == plan.dtype
        return bool(is_alike and array.sharding == plan.sharding)

    assert all(jax.tree.leaves(jax.tree.map(agree, drawn, planned)))
    layer = drawn["layers"][0]
    assert isinstance(drawn["embedding"], Packed)
    assert isinstance(layer["mlp"]["down"], Packed)
    assert layer["attention"]["qkv_bias"].dtype == layer["mlp_norm"]["weight"].dtype == jnp.float32
