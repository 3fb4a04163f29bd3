"""The end of a step: tokens chosen, rows that cannot be sampled from, what is kept in slots."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from jaxserve.api.plan import SlotAssignment
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.config.engine import LOGPROBS_MODES
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import SamplingSettings
from jaxserve.execution.heads.sample import (
    FEW_SAMPLED,
    MUCH_ROOM,
    SampleStatus,
    StepOutput,
    to_step_output,
)
from jaxserve.execution.heads.sample import choose as choose_tokens
from jaxserve.execution.shapes import FULL, GREEDY, SAMPLE, Feature, StepShape
from jaxserve.execution.state import SlotState, abstract_state, assign_slot, slot_row
from tests.execution.inputs import step_input

VOCAB_SIZE = 50
NUM_SLOTS = 9
NUM_ROWS = 8
SETTINGS = SamplingSettings(max_logprobs=4)
PATHS = [GREEDY, SAMPLE, FULL]


def empty_state() -> SlotState[jax.Array]:
    described = abstract_state(num_slots=NUM_SLOTS, vocab_size=VOCAB_SIZE)
    state: SlotState[jax.Array] = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), described
    )
    return state


@cache
def compiled(
    features: Feature, *, branch: bool, settings: SamplingSettings = SETTINGS
) -> Callable[..., tuple[StepOutput, SlotState[jax.Array]]]:
    def run(
        logits: jax.Array, inputs: StepInput, state: SlotState[jax.Array]
    ) -> tuple[StepOutput, SlotState[jax.Array]]:
        rows = logits[inputs.query_starts[1:] - 1]
        shape = StepShape(NUM_ROWS, NUM_ROWS, 1, features, branches=branch)
        sampled = choose_tokens(lambda count: rows[:count], inputs, state, shape, settings)
        return to_step_output(sampled, inputs, state, adjusts=Feature.ADJUST in features)

    return jax.jit(run)


def choose(
    logits: ArrayLike,
    features: Feature,
    fields: Mapping[str, ArrayLike],
    *,
    branch: bool = False,
    settings: SamplingSettings = SETTINGS,
    state: SlotState[jax.Array] | None = None,
) -> tuple[StepOutput, SlotState[jax.Array]]:
    every_row_samples: dict[str, ArrayLike] = {
        "slots": np.arange(1, NUM_ROWS + 1),
        "samples": 1,
        "kv_lengths": 3,
        "needs": features,
    }
    return compiled(FULL if branch else features, branch=branch, settings=settings)(
        jnp.asarray(logits, jnp.float32),
        step_input(NUM_ROWS, **(every_row_samples | dict(fields))),
        empty_state() if state is None else state,
    )


def random_logits() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((NUM_ROWS, VOCAB_SIZE)).astype(np.float32)


@pytest.mark.parametrize("features", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_the_row_that_is_not_finite_is_reported(features: Feature, bad: float) -> None:
    logits = random_logits()
    logits[3, 17] = bad
    output, _ = choose(logits, features, {})
    clean, _ = choose(random_logits(), features, {})
    others = np.arange(NUM_ROWS) != 3
    np.testing.assert_array_equal(output.tokens[0], others)
    np.testing.assert_array_equal(output.tokens[2, others], clean.tokens[2, others])


@pytest.mark.parametrize("features", PATHS)
def test_a_row_whose_tokens_are_all_forbidden_is_reported(features: Feature) -> None:
    logits = random_logits()
    logits[6] = -np.inf
    output, _ = choose(logits, features, {})
    np.testing.assert_array_equal(output.tokens[0], np.arange(NUM_ROWS) != 6)


def test_a_row_forbidden_by_its_own_biases_is_reported() -> None:
    state = empty_state()
    bias = state.bias.at[4].set(-np.inf)
    is_row = np.arange(NUM_ROWS) == 3
    state = SlotState(**{**vars(state), "bias": bias})
    output, _ = choose(random_logits(), FULL, {"adjusts": is_row}, state=state)
    expected = np.where(is_row, SampleStatus.NONE_ALLOWED, SampleStatus.SAMPLED)
    np.testing.assert_array_equal(output.tokens[0], expected)


@pytest.mark.parametrize("features", PATHS)
def test_a_program_that_branches_chooses_as_one_that_does_not(features: Feature) -> None:
    fields: dict[str, ArrayLike] = {
        "temperature": [0.0, 0.7] * 4,
        "seed_low": np.arange(NUM_ROWS),
        "adjusts": 1,
    }
    apart, apart_state = choose(random_logits(), features, fields)
    branched, branched_state = choose(random_logits(), features, fields, branch=True)
    np.testing.assert_array_equal(branched.tokens, apart.tokens)
    jax.tree.map(np.testing.assert_allclose, branched.logprobs, apart.logprobs)
    np.testing.assert_array_equal(branched_state.last_token, apart_state.last_token)


@pytest.mark.parametrize("features", PATHS)
@pytest.mark.parametrize("last", [0, FEW_SAMPLED - 1, FEW_SAMPLED, MUCH_ROOM - 1])
def test_few_sequences_are_given_the_tokens_they_have_among_many(
    features: Feature, last: int
) -> None:
    samples = np.zeros(MUCH_ROOM, np.int32)
    samples[[0, last]] = 1
    inputs = step_input(
        MUCH_ROOM,
        slots=np.arange(MUCH_ROOM) % NUM_SLOTS,
        samples=samples,
        kv_lengths=3,
        needs=features,
        temperature=0.7 * (np.arange(MUCH_ROOM) % 2),
        seed_low=np.arange(MUCH_ROOM),
        reports=1,
    )
    logits = jnp.asarray(np.random.default_rng(5).standard_normal((MUCH_ROOM, VOCAB_SIZE)))
    counts: list[int] = []

    def first(count: int) -> jax.Array:
        counts.append(count)
        return logits[:count]

    few, many = (
        to_step_output(
            choose_tokens(
                first,
                inputs,
                empty_state(),
                StepShape(num_tokens, MUCH_ROOM, 1, FULL, branches=True),
                SETTINGS,
            ),
            inputs,
            empty_state(),
            adjusts=True,
        )
        for num_tokens in (2 * MUCH_ROOM, MUCH_ROOM)
    )
    assert FEW_SAMPLED in counts
    np.testing.assert_array_equal(few[0].tokens[:, samples == 1], many[0].tokens[:, samples == 1])
    np.testing.assert_array_equal(few[1].last_token, many[1].last_token)
    jax.tree.map(np.testing.assert_array_equal, few[0].logprobs, many[0].logprobs)


@pytest.mark.parametrize("features", PATHS)
def test_only_rows_that_sample_leave_a_token_in_their_slot(features: Feature) -> None:
    samples = np.array([1, 1, 0, 1, 0, 1, 0, 0])
    slots = np.array([8, 2, 1, 5, 3, 4, 0, 0])
    output, state = choose(
        random_logits(), features, {"slots": slots, "samples": samples, "adjusts": samples}
    )
    wanted = np.zeros(NUM_SLOTS, np.int32)
    wanted[slots[samples == 1]] = np.asarray(output.tokens[2])[samples == 1]
    np.testing.assert_array_equal(state.last_token, wanted)


def test_greedy_rows_are_the_same_in_every_variant() -> None:
    greedy = [
        choose(random_logits(), features, {"temperature": 0.0})[0].tokens[2] for features in PATHS
    ]
    np.testing.assert_array_equal(greedy[0], random_logits().argmax(axis=1))
    np.testing.assert_array_equal(greedy[1], greedy[0])
    np.testing.assert_array_equal(greedy[2], greedy[0])


@pytest.mark.parametrize("num_sampled", [0, 1, 9])
@pytest.mark.parametrize("features", PATHS)
def test_a_step_with_branches_chooses_as_one_without(features: Feature, num_sampled: int) -> None:
    rng = np.random.default_rng(11)
    num_sequences, num_tokens = 24, 70
    samples = np.zeros(num_sequences, np.int32)
    samples[rng.permutation(num_sequences)[:num_sampled]] = 1
    logits = jnp.asarray(rng.standard_normal((num_tokens, VOCAB_SIZE)), jnp.float32)
    inputs = step_input(
        num_sequences,
        needs=features,
        samples=samples,
        slots=rng.integers(1, NUM_SLOTS, num_sequences),
        seed_low=np.arange(num_sequences),
        temperature=np.where(np.arange(num_sequences) % 2, 0.0, 0.8),
        kv_lengths=5,
        adjusts=1,
    )
    # The first sequence has the rows that the others leave.
    starts = num_tokens - num_sequences + jnp.arange(num_sequences + 1)
    inputs = replace(
        inputs, token_ids=jnp.zeros(num_tokens, jnp.int32), query_starts=starts.at[0].set(0)
    )

    apart, _ = compiled(features, branch=False)(logits, inputs, empty_state())
    branched, _ = compiled(FULL, branch=True)(logits, inputs, empty_state())

    sampled = samples == 1
    np.testing.assert_array_equal(branched.tokens[:, sampled], apart.tokens[:, sampled])
    assert np.all(apart.tokens[:2, sampled] == 1)


def test_no_report_is_made_where_nobody_asks() -> None:
    silent, _ = choose(random_logits(), FULL, {"reports": 0})
    asked, _ = choose(random_logits(), FULL, {"reports": np.arange(NUM_ROWS) == 2})
    np.testing.assert_array_equal(silent.tokens, asked.tokens)
    assert not np.any(silent.logprobs.top)
    assert np.all(asked.logprobs.top[2] < 0)


@pytest.mark.parametrize("mode", LOGPROBS_MODES)
def test_what_is_reported_is_what_the_operator_chose(mode: str) -> None:
    logits = random_logits()
    fields: dict[str, ArrayLike] = {"reports": 1, "temperature": [0.0, 0.5] * 4, "top_k": 3}
    output, _ = choose(
        logits,
        FULL,
        fields,
        settings=SamplingSettings(max_logprobs=5, logprobs_mode=mode),
    )
    expected = logits.astype(np.float64)
    if mode.startswith("processed"):
        third = np.sort(expected)[:, -3, None]
        is_sampled = np.arange(NUM_ROWS)[:, None] % 2 == 1
        expected = np.where(
            is_sampled, np.where(expected >= third, expected / 0.5, -np.inf), expected
        )
    if mode.endswith("logprobs"):
        expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    best = -np.sort(-expected)[:, :5]
    np.testing.assert_allclose(output.logprobs.top, best, atol=1e-5)
    own = np.take_along_axis(expected, np.asarray(output.tokens[2])[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(output.logprobs.chosen, own, atol=1e-5)


def test_tokens_asked_for_by_id_are_reported() -> None:
    logits = random_logits()
    params = SamplingParams(logprob_token_ids=(7, 0, 49))
    assignment = SlotAssignment(slot=3, params=params, seed=0, prompt_ids=(1,))
    memory: Any = slot_row(assignment, vocab_size=VOCAB_SIZE)
    state = assign_slot(empty_state(), jnp.int32(3), memory)
    output, _ = choose(logits, FULL, {"reports": 1}, state=state)
    scores = jax.nn.log_softmax(logits[2])  # the row of slot 3
    np.testing.assert_allclose(
        output.logprobs.named[2, :3], scores[jnp.array([7, 0, 49])], atol=1e-5
    )
