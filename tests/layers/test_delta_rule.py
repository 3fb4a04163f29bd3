"""The gated delta rule and the causal convolution over packed sequences, against plain loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from numpy.typing import NDArray

from jaxserve.layers.causal_conv import causal_conv
from jaxserve.layers.delta_rule import DeltaInputs, gated_delta_rule
from jaxserve.layers.recurrence import CHUNK
from tests.layers.packed import BATCHES, Packed

HEADS, GROUP, KEY, VALUE, TAPS = 2, 2, 8, 6, 4


def arrays(packed: Packed, *, seed: int = 0) -> tuple[DeltaInputs, Array]:
    """Return inputs of the rule, with NaN in the rows of padding, and a memory."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        values = rng.normal(size=(packed.num_tokens, HEADS, *shape)).astype(np.float32)
        values[sum(packed.lengths) :] = np.nan
        return values

    k = normal(KEY)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    rate = 1 / (1 + np.exp(-normal(GROUP)))
    inputs = (normal(KEY), k, normal(GROUP, VALUE), -0.1 * np.abs(normal(GROUP)), rate)
    memory = rng.normal(size=(len(packed.lengths), HEADS, GROUP, KEY, VALUE))
    return DeltaInputs(*map(jnp.asarray, inputs)), jnp.asarray(memory, jnp.float32)


def by_hand(
    inputs: DeltaInputs, memory: Array, packed: Packed
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the outputs of each sequence, and the memory, token by token in float64."""
    q, k, v, log_decay, rate = (np.asarray(each, np.float64) for each in inputs)
    after = np.asarray(memory, np.float64)
    outputs = []
    for number, rows in enumerate(packed.slices()):
        of_sequence = []
        for row in range(rows.start, rows.stop):
            after[number] *= np.exp(log_decay[row])[..., None, None]
            old = np.einsum("hk,hrkv->hrv", k[row], after[number])
            change = rate[row][..., None] * (v[row] - old)
            after[number] += np.einsum("hk,hrv->hrkv", k[row], change)
            of_sequence.append(np.einsum("hk,hrkv->hrv", q[row], after[number]))
        outputs.append(np.array(of_sequence).reshape(-1, HEADS, GROUP, VALUE))
    return outputs, after


@pytest.mark.parametrize("packed", BATCHES, ids=lambda packed: str(packed.lengths))
def test_packed_sequences_get_what_the_rule_gives_token_by_token(packed: Packed) -> None:
    inputs, memory = arrays(packed)
    rule: Any = jax.jit(lambda inputs, memory: gated_delta_rule(inputs, memory, packed))
    outputs, after = rule(inputs, memory)
    expected, expected_after = by_hand(inputs, memory, packed)
    for rows, each in zip(packed.slices(), expected, strict=True):
        np.testing.assert_allclose(outputs[rows], each, atol=2e-5)
    np.testing.assert_allclose(after, expected_after, atol=2e-5)


def test_a_sequence_in_parts_gets_what_the_whole_gets() -> None:
    inputs, memory = arrays(Packed((200,), 200))
    whole, after = gated_delta_rule(inputs, memory, Packed((200,), 200))
    outputs, start = [], 0
    for length in (70, 1, 64, 65):
        part = DeltaInputs(*(each[start : start + length] for each in inputs))
        out, memory = gated_delta_rule(part, memory, Packed((length,), length))
        outputs.append(out)
        start += length
    np.testing.assert_allclose(jnp.concatenate(outputs), whole, atol=1e-5)
    np.testing.assert_allclose(memory, after, atol=1e-5)


def test_equal_keys_in_a_whole_chunk_stay_accurate() -> None:
    packed = Packed((4 * CHUNK,), 4 * CHUNK)
    inputs, memory = arrays(packed)
    inputs = inputs._replace(
        k=jnp.broadcast_to(inputs.k[:1], inputs.k.shape),
        log_decay=jnp.zeros_like(inputs.log_decay),
        rate=jnp.ones_like(inputs.rate),
    )
    outputs, after = gated_delta_rule(inputs, memory, packed)
    expected, expected_after = by_hand(inputs, memory, packed)
    np.testing.assert_allclose(outputs, expected[0], atol=1e-4)
    np.testing.assert_allclose(after, expected_after, atol=1e-4)


def test_the_slope_of_a_chunked_sequence_is_that_of_single_steps() -> None:
    inputs, memory = arrays(Packed((80,), 80))

    def chunked(given: DeltaInputs) -> Array:
        return gated_delta_rule(given, memory, Packed((80,), 80))[0].sum()

    def stepped(given: DeltaInputs) -> Array:
        def step(state: Array, token: DeltaInputs) -> tuple[Array, Array]:
            one = jax.tree.map(lambda each: each[None], token)
            out, state = gated_delta_rule(one, state, Packed((1,), 1))
            return state, out.sum()

        return lax.scan(step, memory, given)[1].sum()

    slopes = [jax.jit(jax.grad(each))(inputs) for each in (chunked, stepped)]
    for chunked_slope, stepped_slope in zip(*slopes, strict=True):
        np.testing.assert_allclose(chunked_slope, stepped_slope, atol=1e-4)


def convolved(x: Array, weight: Array, tail: Array, packed: Packed) -> list[NDArray[np.float32]]:
    """Return each sequence's convolution, by numpy."""
    found = []
    for number, rows in enumerate(packed.slices()):
        whole = np.concatenate([tail[number], x[rows]])
        windows = [whole[at : at + TAPS] for at in range(rows.stop - rows.start)]
        found.append(np.array([(window * weight.T).sum(axis=0) for window in windows]))
    return found


@pytest.mark.parametrize("packed", BATCHES, ids=lambda packed: str(packed.lengths))
def test_convolutions_continue_from_the_tails_of_their_sequences(packed: Packed) -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, weight = normal(packed.num_tokens, 5), normal(5, TAPS)
    tail = normal(len(packed.lengths), TAPS - 1, 5)
    conv: Any = jax.jit(lambda x, weight, tail: causal_conv(x, weight, tail, packed))
    out, after = conv(x, weight, tail)
    for number, (rows, each) in enumerate(
        zip(packed.slices(), convolved(x, weight, tail, packed), strict=True)
    ):
        if packed.lengths[number]:
            np.testing.assert_allclose(out[rows], each, atol=1e-5)
        inputs = np.concatenate([tail[number], x[rows]])
        np.testing.assert_array_equal(after[number], inputs[-(TAPS - 1) :])
