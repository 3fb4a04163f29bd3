"""Routers: which experts a token selects, and with which weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.layers.routing import Routing

LOGITS = jnp.asarray([[0.0, 2.0, 1.0, -1.0], [3.0, -2.0, 0.5, 2.5]])


def test_weights_are_a_softmax_over_all_experts() -> None:
    experts, weights = Routing(num_experts=4, top_k=2, renormalize=False)(LOGITS)
    np.testing.assert_array_equal(experts, [[1, 2], [0, 3]])
    scores = jax.nn.softmax(LOGITS)
    np.testing.assert_allclose(weights, [scores[0, [1, 2]], scores[1, [0, 3]]], rtol=1e-6)


def test_renormalised_weights_are_a_softmax_over_the_selected_experts() -> None:
    experts, weights = Routing(num_experts=4, top_k=3)(LOGITS)
    selected = jnp.take_along_axis(LOGITS, experts, axis=1)
    np.testing.assert_allclose(weights, jax.nn.softmax(selected), rtol=1e-6)


def test_a_correction_bias_selects_and_does_not_weigh() -> None:
    routing = Routing(num_experts=4, top_k=2, scoring="sigmoid", renormalize=False)
    experts, weights = routing(LOGITS[:1], jnp.asarray([0.0, -1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(experts, [[3, 2]])
    np.testing.assert_allclose(weights, jax.nn.sigmoid(LOGITS[:1, [3, 2]]), rtol=1e-6)


def test_weights_are_scaled_after_renormalisation() -> None:
    routing = Routing(num_experts=4, top_k=2, scoring="sigmoid", scaling_factor=2.5)
    np.testing.assert_allclose(jnp.sum(routing(LOGITS)[1], axis=1), 2.5, rtol=1e-6)


def test_a_small_sum_is_not_scaled_up_beyond_its_limit() -> None:
    routing = Routing(num_experts=4, top_k=2, scoring="sigmoid", least_sum=1e-2)
    _, weights = routing(jnp.full((1, 4), -10.0))
    np.testing.assert_allclose(weights, jax.nn.sigmoid(-10.0) / 1e-2, rtol=1e-6)


@pytest.mark.parametrize(("group_experts", "expected"), [(1, [4, 5]), (2, [0, 1])])
def test_only_experts_of_the_best_groups_are_selected(
    group_experts: int, expected: list[int]
) -> None:
    logits = jnp.asarray([[3.0, 2.9, 1.0, 1.0, 4.0, -9.0]])
    routing = Routing(
        num_experts=6, top_k=2, scoring="sigmoid", groups=3, group_experts=group_experts
    )
    experts, _ = routing(logits)
    np.testing.assert_array_equal(experts, [expected])
