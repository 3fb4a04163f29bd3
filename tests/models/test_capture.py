"""Activations by name: what is captured is what was computed, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxserve.errors import ConfigError
from jaxserve.models import Decoder, capture, config_from_hf, init_model
from tests.goldens.checkpoints import tiny_config

# docs/models.md lists these.
NAMES = {
    "embedding": (7, 32),
    "layers.0.attention.q": (7, 4, 16),
    "layers.0.attention.k": (7, 2, 16),
    "layers.0.attention.v": (7, 2, 16),
    "layers.0.attention.heads": (7, 4, 16),
    "layers.0.attention.out": (7, 32),
    "layers.0.mlp.active": (7, 56),
    "layers.0.mlp.out": (7, 32),
    "layers.0.out": (7, 32),
    "final_norm": (7, 32),
}
ROW = jnp.arange(7)


def tiny_model() -> Decoder:
    return init_model(config_from_hf(tiny_config("qwen3")))


def test_every_documented_activation_has_its_shape() -> None:
    _, seen = jax.eval_shape(lambda model: capture(model, ROW, *NAMES), tiny_model())
    assert {name: value.shape for name, value in seen.items()} == NAMES


def test_the_tap_sees_the_documented_names_and_no_others() -> None:
    names: list[str] = []

    def note(name: str, value: Array) -> Array:
        names.append(name.replace("layers.1", "layers.0").replace("layers.2", "layers.0"))
        return value

    jax.eval_shape(lambda model: model(ROW, tap=note), tiny_model())
    assert set(names) == set(NAMES)


def test_the_stream_is_the_sum_of_what_was_added_to_it() -> None:
    names = ("embedding", "layers.*.*.out", "layers.2.out")
    _, seen = jax.jit(lambda model: capture(model, ROW, *names))(tiny_model())
    stream = seen.pop("layers.2.out")
    np.testing.assert_allclose(sum(seen.values()), stream, atol=1e-5)


def test_a_star_stands_for_one_part_of_a_name() -> None:
    _, seen = jax.eval_shape(lambda model: capture(model, ROW, "layers.*.out"), tiny_model())
    assert sorted(seen) == ["layers.0.out", "layers.1.out", "layers.2.out"]


def test_capture_works_under_jit_on_a_batch_and_leaves_the_logits_alone() -> None:
    model, batch = tiny_model(), jnp.stack([ROW, ROW + 1])
    logits, seen = jax.jit(lambda m, ids: capture(m, ids, "layers.1.out"))(model, batch)
    assert seen["layers.1.out"].shape == (2, 7, 32)
    np.testing.assert_allclose(logits, jax.jit(model)(batch), atol=1e-6)


def test_a_gradient_flows_into_a_captured_activation() -> None:
    def size(model: Decoder) -> Array:
        return jnp.sum(capture(model, ROW, "layers.0.out")[1]["layers.0.out"] ** 2)

    slopes = jax.jit(jax.grad(size))(tiny_model())
    assert jnp.any(slopes.layers[0].mlp.down[...])
    assert not jnp.any(slopes.layers[1].mlp.down[...])


def test_a_tap_replaces_what_the_model_goes_on_with() -> None:
    def silence(name: str, value: Array) -> Array:
        return jnp.zeros_like(value) if name.endswith(("attention.out", "mlp.out")) else value

    model = tiny_model()
    _, seen = capture(model, ROW, "embedding")
    expected = model.logits(
        seen["embedding"]
        / jnp.sqrt(jnp.mean(seen["embedding"] ** 2, -1, keepdims=True) + model.config.norm_eps)
    )
    np.testing.assert_allclose(model(ROW, tap=silence), expected, atol=1e-5)


def test_a_name_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'layers\.9\.out' matches none"):
        capture(tiny_model(), ROW, "layers.0.out", "layers.9.out")
