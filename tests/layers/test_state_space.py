"""The recurrence of Mamba2 over packed sequences, against a plain loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from jaxserve.layers.state_space import StateSpaceInputs, state_space
from tests.layers.packed import DECODE, MIXED, Packed

GROUPS, HEADS, VALUE, STATE = 2, 3, 6, 4


def arrays(packed: Packed, *, speed: float) -> tuple[StateSpaceInputs, Array]:
    """Return inputs of the recurrence, with NaN in the rows of padding, and a memory."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        values = rng.normal(size=(packed.num_tokens, GROUPS, *shape)).astype(np.float32)
        values[sum(packed.lengths) :] = np.nan
        return values

    rate = np.abs(normal(HEADS))
    x, b, c = normal(HEADS, VALUE), normal(STATE), normal(STATE)
    inputs = (x, b, c, -speed * rate, rate)
    memory = rng.normal(size=(len(packed.lengths), GROUPS, HEADS, VALUE, STATE))
    return StateSpaceInputs(*map(jnp.asarray, inputs)), jnp.asarray(memory, jnp.float32)


def by_hand(
    inputs: StateSpaceInputs, memory: Array, packed: Packed
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the outputs of each sequence, and the memory, token by token in float64."""
    x, b, c, log_decay, rate = (np.asarray(each, np.float64) for each in inputs)
    after = np.array(memory, np.float64)
    outputs = []
    for number, rows in enumerate(packed.slices()):
        of_sequence = []
        for row in range(rows.start, rows.stop):
            after[number] *= np.exp(log_decay[row])[..., None, None]
            after[number] += np.einsum("gr,grv,gs->grvs", rate[row], x[row], b[row])
            of_sequence.append(np.einsum("grvs,gs->grv", after[number], c[row]))
        outputs.append(np.array(of_sequence).reshape(-1, GROUPS, HEADS, VALUE))
    return outputs, after


# Nothing is forgotten within a chunk, or nearly all of it within a few tokens.
@pytest.mark.parametrize(("packed", "speed"), [(DECODE, 0.1), (MIXED, 0.01), (MIXED, 3.0)])
def test_packed_sequences_get_what_the_recurrence_gives_token_by_token(
    packed: Packed, speed: float
) -> None:
    inputs, memory = arrays(packed, speed=speed)
    recurrence: Any = jax.jit(lambda inputs, memory: state_space(inputs, memory, packed))
    outputs, after = recurrence(inputs, memory)
    expected, expected_after = by_hand(inputs, memory, packed)
    for rows, each in zip(packed.slices(), expected, strict=True):
        np.testing.assert_allclose(outputs[rows], each, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(after, expected_after, rtol=1e-5, atol=1e-4)
