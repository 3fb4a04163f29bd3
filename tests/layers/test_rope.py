"""Rotations: what each variant promises, in closed form. The goldens hold them to transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxserve.layers.rope import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    Rope,
    YarnRope,
    rotation,
)
from pallas_kernels.rotary import rotate

HEAD_DIM = 16


def heads(seed: int, *, num_tokens: int = 1) -> Array:
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(num_tokens, 1, HEAD_DIM)), jnp.float32
    )


def turned(x: Array, position: int, rope: Rope | None = None) -> Array:
    table = rotation(rope or Rope(), HEAD_DIM, jnp.array([position]), length=position + 1)
    return rotate(x, table)


def test_position_zero_is_not_turned() -> None:
    x = heads(0)
    np.testing.assert_array_equal(turned(x, 0), x)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = heads(1), heads(2)
    near = jnp.vdot(turned(q, 5), turned(k, 2))
    far = jnp.vdot(turned(q, 105), turned(k, 102))
    np.testing.assert_allclose(near, far, atol=1e-4)


def test_pairs_are_the_two_halves_of_a_head() -> None:
    x = jnp.zeros((1, 1, HEAD_DIM)).at[0, 0, 0].set(1.0)
    expected = np.zeros(HEAD_DIM)
    expected[0], expected[HEAD_DIM // 2] = np.cos(1.0), np.sin(1.0)
    np.testing.assert_allclose(turned(x, 1)[0, 0], expected, atol=1e-6)


def test_bfloat16_tells_neighbouring_late_positions_apart() -> None:
    x = jnp.ones((1, 1, HEAD_DIM), jnp.bfloat16)
    assert not np.array_equal(turned(x, 256), turned(x, 257))
    assert turned(x, 256).dtype == jnp.bfloat16


def test_linear_divides_positions() -> None:
    x = heads(3)
    stretched = turned(x, 12, LinearRope(factor=4.0))
    np.testing.assert_allclose(stretched, turned(x, 3), atol=1e-6)


@pytest.mark.parametrize("length", [1, 64])
def test_dynamic_is_plain_up_to_the_trained_length(length: int) -> None:
    rope = DynamicRope(factor=4.0, max_position=64)
    np.testing.assert_allclose(
        rope.inverse_frequencies(HEAD_DIM, length=length),
        Rope().inverse_frequencies(HEAD_DIM, length=length),
    )


def test_dynamic_slows_the_slowest_pair_as_the_length_grows() -> None:
    rope = DynamicRope(factor=4.0, max_position=64)
    slowest = [rope.inverse_frequencies(HEAD_DIM, length=n)[-1] for n in (64, 65, 128, 256)]
    assert slowest == sorted(slowest, reverse=True)
    # base grows by (factor * length / max_position - factor + 1) ** (d / (d - 2)), and the slowest
    # pair has exponent (d - 2) / d: together, division by the bracket itself.
    assert slowest[0] / slowest[3] == pytest.approx(4.0 * 256 / 64 - 3.0)


def test_llama3_keeps_short_waves_and_divides_long_ones() -> None:
    rope = Llama3Rope(
        theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )
    plain = Rope(theta=500000.0).inverse_frequencies(128, length=1)
    ratio = rope.inverse_frequencies(128, length=1) / plain
    waves = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[waves < 8192 / 4], 1.0)
    np.testing.assert_allclose(ratio[waves > 8192], 1 / 8)
    between = ratio[(waves > 8192 / 4) & (waves < 8192)]
    assert between.size > 0
    assert np.all((between > 1 / 8) & (between < 1))


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    rope = YarnRope(factor=4.0, original_max_position=4096)
    plain = Rope().inverse_frequencies(128, length=1)
    ratio = rope.inverse_frequencies(128, length=1) / plain
    turns = 4096 * plain / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1.0)
    np.testing.assert_allclose(ratio[turns < 0.8], 1 / 4)


@pytest.mark.parametrize(
    ("rope", "magnitude"),
    [
        (YarnRope(factor=4.0, original_max_position=64), 0.1 * np.log(4.0) + 1.0),
        (YarnRope(factor=1.0, original_max_position=64), 1.0),
        (YarnRope(factor=4.0, original_max_position=64, attention_factor=1.5), 1.5),
        (YarnRope(factor=4.0, original_max_position=64, mscale=1.0, mscale_all_dim=1.0), 1.0),
        (
            YarnRope(factor=4.0, original_max_position=64, mscale=1.0, mscale_all_dim=0.0),
            0.1 * np.log(4.0) + 1.0,
        ),
    ],
)
def test_yarn_scales_cosines_and_sines(rope: YarnRope, magnitude: float) -> None:
    cos, sin = rotation(rope, HEAD_DIM, jnp.array([3]), length=4)
    np.testing.assert_allclose(jnp.hypot(cos, sin), np.full((1, HEAD_DIM // 2), magnitude), 1e-6)


def test_a_partial_rotation_leaves_the_last_dimensions_of_a_head() -> None:
    x = heads(4)
    partial = turned(x, 7, Rope(partial_rotary_factor=0.25))
    np.testing.assert_array_equal(partial[..., 4:], x[..., 4:])
    table = rotation(Rope(), 4, jnp.array([7]), length=8)
    np.testing.assert_array_equal(partial[..., :4], rotate(x[..., :4], table))
