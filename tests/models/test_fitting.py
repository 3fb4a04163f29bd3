"""A model on more devices than it has KV heads, and with a vocabulary that does not divide."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import (
    GroupedQuery,
    abstract_params,
    bind,
    config_from_hf,
    fitted,
    random_params,
)
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout, find_method
from tests.goldens.checkpoints import tiny_config, write_checkpoint

# 8 heads over 2 KV heads, with biases, and an odd vocabulary.
HF = tiny_config("qwen2", num_attention_heads=8, num_key_value_heads=2, vocab_size=97)
MODEL = config_from_hf(HF)
SHARDING = ShardingPlan(make_mesh(4))
FITTED = fitted(MODEL, SHARDING)
IDS = jnp.arange(12)


def test_every_device_has_a_head_and_as_much_of_the_vocabulary() -> None:
    mixer = FITTED.layers[0].mixer
    assert isinstance(mixer, GroupedQuery)
    assert (mixer.kv_heads, mixer.kv_copies, FITTED.vocab_padding) == (4, 2, 3)
    params = abstract_params(FITTED, WeightLayout(sharding=SHARDING))
    qkv, embedding = params["layers"][0]["attention"]["qkv"], params["embedding"]
    # Two queries, a key and a value.
    assert qkv.sharding.shard_shape(qkv.shape)[1:3] == (1, 4)
    assert embedding.sharding.shard_shape(embedding.shape)[0] == 25


def test_a_model_that_divides_stays_as_it_is() -> None:
    assert fitted(MODEL, ShardingPlan(make_mesh(1))) == MODEL
    assert fitted(FITTED, SHARDING) == FITTED


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_loaded_logits_are_those_of_one_device(
    tmp_path: Path, quantization: str | None, *, tied: bool
) -> None:
    hf = HF | {"tie_word_embeddings": tied}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, hf))
    method, model = find_method(quantization), config_from_hf(hf)
    alone = load_params(checkpoint, model, WeightLayout(method=method))
    layout = WeightLayout(sharding=SHARDING, method=method)
    wide = fitted(model, SHARDING)
    spread = load_params(checkpoint, wide, layout)
    planned = abstract_params(wide, layout)

    def agree(array: jax.Array, plan: jax.ShapeDtypeStruct) -> bool:
        return bool(array.shape == plan.shape and array.sharding == plan.sharding)

    assert all(jax.tree.leaves(jax.tree.map(agree, spread, planned)))
    found = jax.jit(bind(wide, spread))(IDS)
    np.testing.assert_allclose(
        found[:, :97], jax.jit(bind(model, alone))(IDS), rtol=1e-4, atol=1e-4
    )


def test_random_parameters_are_those_of_one_device() -> None:
    alone = random_params(MODEL, seed=3)
    spread = random_params(FITTED, WeightLayout(sharding=SHARDING), seed=3)
    found = jax.jit(bind(FITTED, spread))(IDS)
    np.testing.assert_allclose(found[:, :97], jax.jit(bind(MODEL, alone))(IDS), atol=1e-5)
