"""Deferred sampling: allowed tokens only, by the rules of each row, stored in its slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.api.plan import RowPlan, SlotAssignment
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.execution.batch import (
    Rows,
    SlotTable,
    StepInput,
    mask_words,
    pack_deferred,
    unpack_deferred,
    unpack_masks,
)
from jaxserve.execution.context import SamplingSettings
from jaxserve.execution.heads.sample import SampleStatus, sample_tokens
from jaxserve.execution.sampling import greedy
from jaxserve.execution.shapes import FULL, GREEDY, SAMPLE, DeferredSampleShape, Feature
from tests.execution.test_choice import VOCAB_SIZE, empty_state, random_logits

SHAPE = DeferredSampleShape(8)


def masks_of(allowed: np.ndarray) -> np.ndarray:
    """Bits of bool[rows, tokens], as int32[rows, words]."""
    padded = np.zeros((len(allowed), 32 * mask_words(VOCAB_SIZE)), np.uint8)
    padded[:, :VOCAB_SIZE] = allowed
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def packed(allowed: np.ndarray, **params: object) -> np.ndarray:
    """Pack deferred sampling for slots 1, 2, ..., whose sequences have 3 tokens."""
    table = SlotTable(num_slots=9, pages=2)
    rows = []
    for slot in range(1, len(allowed) + 1):
        settings = SamplingParams(**{"temperature": 0.0, **params})  # type: ignore[arg-type]
        table.assign(
            SlotAssignment(slot=slot, params=settings, seed=slot, prompt_ids=(1,)),
        )
        rows.append(RowPlan(slot=slot, start=2, num_tokens=1, token_ids=()))
    masks = masks_of(allowed)
    return pack_deferred(Rows(tuple(rows)), masks, GREEDY, SHAPE, table, vocab_size=VOCAB_SIZE)


def unpacked(packed: np.ndarray) -> tuple[StepInput, jax.Array]:
    """Return the inputs, and the allowed tokens as bool[rows, tokens]."""
    inputs, masks = unpack_deferred(jnp.asarray(packed), SHAPE, vocab_size=VOCAB_SIZE)
    return inputs, unpack_masks(masks, vocab_size=VOCAB_SIZE)


def test_packed_input_is_unpacked_as_it_was() -> None:
    allowed = np.random.default_rng(0).random((5, VOCAB_SIZE)) < 0.5
    inputs, masks = unpacked(packed(allowed, temperature=0.5, top_k=7))
    np.testing.assert_array_equal(masks[:5], allowed)
    assert not masks[5:].any()
    assert inputs.slots.tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert inputs.samples.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert inputs.kv_lengths[:5].tolist() == [3] * 5
    assert inputs.top_k[:5].tolist() == [7] * 5
    assert inputs.temperature[:5].tolist() == [0.5] * 5


@pytest.mark.parametrize("features", [GREEDY, SAMPLE, FULL])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_sampled(features: Feature, temperature: float) -> None:
    allowed = np.random.default_rng(1).random((8, VOCAB_SIZE)) < 0.1
    allowed[:, 7] = True
    if features is GREEDY:
        temperature = 0.0
    inputs, masks = unpacked(packed(allowed, temperature=temperature))
    logits = jnp.asarray(random_logits(), jnp.float32)
    sampled = jax.jit(
        lambda logits: sample_tokens(
            logits, inputs, empty_state(), features, SamplingSettings(), allowed=masks
        )
    )(logits)
    assert allowed[np.arange(8), sampled.tokens].all()
    assert (sampled.status == SampleStatus.SAMPLED).all()
    if temperature == 0.0:
        expected = greedy(jnp.where(allowed, logits, -jnp.inf))
        np.testing.assert_array_equal(sampled.tokens, expected)


def test_a_row_to_which_nothing_is_allowed_is_reported() -> None:
    allowed = np.ones((8, VOCAB_SIZE), np.bool_)
    allowed[3] = False
    inputs, masks = unpacked(packed(allowed))
    logits = jnp.asarray(random_logits(), jnp.float32)
    sampled = sample_tokens(
        logits, inputs, empty_state(), GREEDY, SamplingSettings(), allowed=masks
    )
    assert sampled.status.tolist() == [1, 1, 1, SampleStatus.NONE_ALLOWED, 1, 1, 1, 1]
