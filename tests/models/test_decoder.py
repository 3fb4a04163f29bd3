"""The decoder as a function: what may be done to it, and what its seams promise the engine."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxserve.errors import ConfigError
from jaxserve.layers.attention import attend_dense, causal_attention
from jaxserve.models import Decoder, bind, config_from_hf, init_model, params_of
from pallas_kernels.paged_attention import AttentionSpec
from tests.goldens.checkpoints import tiny_config


def tiny_model(model_type: str = "qwen3", **changes: object) -> Decoder:
    return init_model(config_from_hf(tiny_config(model_type, **changes)), seed=1)


def tokens(*shape: int) -> Array:
    return jax.random.randint(jax.random.key(0), shape, 0, 96)


def loss(model: Decoder, token_ids: Array) -> Array:
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(model(token_ids)[..., :-1, :]), token_ids[..., 1:, None], axis=-1
    )
    return -chosen.mean()


def test_batched_logits_are_those_of_each_sequence_alone() -> None:
    model, batch = tiny_model(), tokens(2, 3, 7)
    together = jax.jit(model)(batch)
    assert (together.shape, together.dtype) == ((2, 3, 7, 96), jnp.float32)
    np.testing.assert_allclose(together[1, 2], jax.jit(model)(batch[1, 2]), atol=1e-6)


def test_vmap_over_a_model_is_its_batched_call() -> None:
    model, batch = tiny_model(), tokens(3, 7)
    mapped = jax.jit(jax.vmap(model))(batch)
    np.testing.assert_allclose(mapped, jax.jit(model)(batch), atol=1e-6)


def test_logits_do_not_depend_on_tokens_after_them() -> None:
    run, row = jax.jit(tiny_model()), tokens(9)
    np.testing.assert_allclose(run(row)[:5], run(row.at[5:].set(0))[:5], atol=1e-6)


def test_gradient_is_the_slope_of_the_loss() -> None:
    model, batch = tiny_model(), tokens(2, 8)
    slopes = jax.jit(jax.grad(loss))(model, batch)
    told = sum(np.abs(slope).sum() for slope in jax.tree.leaves(slopes))

    @jax.jit
    def loss_along(step: Array) -> Array:
        return loss(jax.tree.map(lambda x, slope: x + step * jnp.sign(slope), model, slopes), batch)

    step = 1e-5
    measured = (loss_along(step) - loss_along(-step)) / (2 * step)
    np.testing.assert_allclose(measured, told, rtol=2e-2)


def test_every_parameter_takes_part_in_the_loss() -> None:
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    slopes = jax.jit(jax.grad(loss))(model, tokens(2, 8))
    dead = [
        jax.tree_util.keystr(path)
        for path, slope in jax.tree_util.tree_leaves_with_path(slopes)
        if not jnp.any(slope)
    ]
    # Softmax does not change when all its scores move together, so a key bias has no effect.
    assert all("k_bias" in name for name in dead), dead


def test_a_bound_tree_computes_what_the_model_does() -> None:
    model, row = tiny_model(), tokens(7)
    run = jax.jit(lambda params, ids: bind(model.config, params)(ids))
    np.testing.assert_allclose(run(params_of(model), row), model(row), atol=1e-6)


def test_binding_twice_does_not_mix_parameters() -> None:
    model, row = tiny_model(), tokens(7)
    doubled = bind(model.config, jax.tree.map(lambda x: 2 * x, params_of(model)))
    again = bind(model.config, params_of(model))
    assert not np.allclose(doubled(row), model(row))
    np.testing.assert_array_equal(again(row), model(row))


def test_a_tree_of_another_shape_is_refused() -> None:
    model = tiny_model()
    params = params_of(model)
    del params["layers"][0]["mlp"]
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.down"):
        bind(model.config, params)


def test_a_sequence_in_two_parts_with_a_cache_is_the_sequence_whole() -> None:
    model, row = tiny_model(), tokens(9)
    none = (None,) * model.config.num_layers
    whole, _ = model.hidden(row, jnp.arange(9), none, attend_dense)

    def attend(
        q: Array, k: Array, v: Array | None, cache: Any, spec: AttentionSpec
    ) -> tuple[Array, Any]:
        assert v is not None
        k, v = (jnp.concatenate(pair) for pair in zip(cache, (k, v), strict=True))
        padded = jnp.concatenate([jnp.zeros((len(k) - len(q), *q.shape[1:])), q])
        return causal_attention(padded, k, v, spec)[len(k) - len(q) :], (k, v)

    empty = (jnp.zeros((0, 2, 16)),) * 2
    first, caches = model.hidden(row[:5], jnp.arange(5), (empty,) * 3, attend)
    second, _ = model.hidden(row[5:], jnp.arange(5, 9), caches, attend)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, atol=1e-5)


def test_each_layer_attends_with_its_own_window_and_cache() -> None:
    model = tiny_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    seen: list[tuple[int, int | None]] = []

    def attend(
        q: Array, k: Array, v: Array | None, cache: int, spec: AttentionSpec
    ) -> tuple[Array, int]:
        assert v is not None
        seen.append((cache, spec.sliding_window))
        return causal_attention(q, k, v, spec), cache + 10

    _, after = model.hidden(tokens(5), jnp.arange(5), (0, 1, 2), attend)
    assert seen == [(0, None), (1, 4), (2, 4)]
    assert after == (10, 11, 12)


def test_only_dynamic_rope_reads_the_rope_length() -> None:
    row, none = tokens(9), (None,) * 3
    run = partial(Decoder.hidden, token_ids=row, positions=jnp.arange(9), caches=none)
    for kind, differs in (("dynamic", True), ("linear", False)):
        rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
        model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16)
        near, _ = run(model, attend=attend_dense, rope_length=16)
        far, _ = run(model, attend=attend_dense, rope_length=64)
        assert np.allclose(near, far, atol=1e-6) != differs


def test_bfloat16_parameters_give_float32_logits_near_those_of_float32() -> None:
    model, row = tiny_model(), tokens(9)
    narrow = bind(model.config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(model)))
    logits = narrow(row)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, model(row), atol=0.02)
