"""Logit adjustments by a slot's state, against the definition in plain Python."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jaxserve.api.plan import SlotAssignment
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.execution import sampling
from jaxserve.execution.batch import SlotTable, StepInput
from jaxserve.execution.state import SlotState, abstract_state, assign_slot, observe, slot_row
from tests.execution import oracle
from tests.execution.inputs import step_input

VOCAB_SIZE = 40
NUM_SLOTS = 6
NUM_ROWS = 4

adjust = jax.jit(sampling.adjust)
assign_jitted = jax.jit(assign_slot)
observe_tokens = jax.jit(observe)

tokens = st.integers(0, VOCAB_SIZE - 1)
# Few ids, so that words and texts meet.
few_tokens = st.integers(0, 3)
texts = st.lists(few_tokens | tokens, min_size=1, max_size=12).map(tuple)


@dataclass(frozen=True)
class Owner:
    """A sequence with a slot; `observed` were sampled in it, the other tokens came before."""

    assignment: SlotAssignment
    observed: tuple[int, ...] = ()

    @property
    def output_ids(self) -> tuple[int, ...]:
        return self.assignment.output_ids + self.observed

    @property
    def length(self) -> int:
        return len(self.assignment.prompt_ids) + len(self.output_ids)


@st.composite
def owners(draw: st.DrawFn) -> Owner:
    allowed = draw(st.none() | st.lists(tokens, min_size=1, max_size=30).map(tuple))
    params = SamplingParams(
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4, -1.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.9, -2.0])),
        logit_bias=draw(st.dictionaries(tokens, st.sampled_from([-100.0, 2.5, 100.0]), max_size=3)),
        allowed_token_ids=allowed,
        min_tokens=draw(st.integers(0, 6)),
        bad_words=("some",),  # so that it adjusts; the ids below are what counts
    )
    assignment = SlotAssignment(
        slot=draw(st.integers(1, NUM_SLOTS - 1)),
        params=params,
        seed=draw(st.integers(0, 2**64 - 1)),
        prompt_ids=draw(texts),
        output_ids=draw(st.lists(few_tokens, max_size=8).map(tuple)),
        stop_ids=draw(st.lists(tokens, max_size=3).map(tuple)),
        bad_word_ids=tuple(
            draw(st.lists(st.lists(few_tokens, min_size=1, max_size=8).map(tuple), max_size=4))
        ),
    )
    return Owner(assignment, draw(st.lists(few_tokens, max_size=9).map(tuple)))


def garbage(seed: int = 0) -> SlotState[jax.Array]:
    """State as bad as it can be: random bits in every array, NaN among the floats."""
    rng = np.random.default_rng(seed)

    def scramble(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == np.bool_:
            return jnp.asarray(rng.random(leaf.shape) < 0.5)
        if leaf.dtype == np.float32:
            return jnp.asarray(rng.choice([np.nan, np.inf, -np.inf, 1e9], leaf.shape), leaf.dtype)
        return jnp.asarray(rng.integers(-(2**31), 2**31 - 1, leaf.shape), leaf.dtype)

    described = abstract_state(num_slots=NUM_SLOTS, vocab_size=VOCAB_SIZE)
    state: SlotState[jax.Array] = jax.tree.map(scramble, described)
    return state


def occupy(state: SlotState[jax.Array], owner: Owner) -> SlotState[jax.Array]:
    """Give a slot to a sequence, then yield its tokens as steps do: one, three and two at once."""
    memory = slot_row(owner.assignment, vocab_size=VOCAB_SIZE)
    slot = np.int32(owner.assignment.slot)
    state = assign_jitted(state, slot, memory)
    sizes, tokens = cycle((1, 3, 2)), list(owner.observed)
    while tokens:
        count = min(next(sizes), len(tokens))
        # In row 2: a row is not a slot.
        row = np.arange(NUM_ROWS) == 2
        yielded = np.full((NUM_ROWS, 3), 7, np.int32)
        yielded[2, :count], tokens = tokens[:count], tokens[count:]
        state = observe_tokens(
            state,
            slots=jnp.where(row, slot, 0),
            tokens=jnp.asarray(yielded),
            counts=jnp.where(row, count, 0),
        )
    return state


def input_for(owner: Owner, *, row: int = 2, adjusts: bool = True) -> StepInput:
    """A batch in which one row is the sequence's and the others are padding."""
    table = SlotTable(num_slots=NUM_SLOTS, pages=1)
    table.assign(owner.assignment)
    is_row = np.arange(NUM_ROWS) == row
    slot = owner.assignment.slot
    min_length = table.ints[slot][-1]
    _, _, _, presence, frequency, repetition = table.floats[slot]
    return step_input(
        NUM_ROWS,
        slots=is_row * slot,
        adjusts=is_row * adjusts,
        kv_lengths=is_row * owner.length,
        min_length=is_row * min_length,
        presence=is_row * presence,
        frequency=is_row * frequency,
        repetition=is_row * repetition,
    )


def logits_of(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal((NUM_ROWS, VOCAB_SIZE))).astype(np.float32)


def check(owner: Owner, state: SlotState[jax.Array], seed: int = 0) -> None:
    logits = logits_of(seed)
    found = np.asarray(adjust(jnp.asarray(logits), input_for(owner), state))
    assignment = owner.assignment
    wanted = oracle.adjusted(
        logits[2],
        assignment.params,
        prompt_ids=assignment.prompt_ids,
        output_ids=owner.output_ids,
        stop_ids=assignment.stop_ids,
        bad_word_ids=assignment.bad_word_ids,
    )
    np.testing.assert_array_equal(np.isneginf(found[2]), np.isneginf(wanted))
    np.testing.assert_allclose(found[2], wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found[[0, 1, 3]], logits[[0, 1, 3]])


@given(owner=owners(), seed=st.integers(0, 1000))
def test_adjusted_logits_are_those_of_the_definition(owner: Owner, seed: int) -> None:
    check(owner, occupy(garbage(seed), owner), seed)


@given(before=owners(), after=owners())
def test_nothing_of_an_earlier_owner_is_left_in_a_slot(before: Owner, after: Owner) -> None:
    before = replace(before, assignment=replace(before.assignment, slot=after.assignment.slot))
    check(after, occupy(occupy(garbage(), before), after))


@given(owner=owners(), split=st.integers(0, 20))
def test_a_slot_remembers_the_same_after_a_preemption(owner: Owner, split: int) -> None:
    """Assigned with the tokens it had sampled, it stands where it stood."""
    resumed = replace(owner.assignment, output_ids=owner.output_ids[:split])
    states = (
        occupy(garbage(), owner),
        occupy(garbage(), Owner(resumed, owner.output_ids[split:])),
    )
    slot = owner.assignment.slot
    for name in ("seen", "counts", "bias", "stop_ids", "bad_words", "bad_lengths", "recent"):
        first, second = (np.asarray(getattr(state, name))[slot] for state in states)
        np.testing.assert_array_equal(first, second, err_msg=name)


@given(owner=owners(), seed=st.integers(0, 1000))
def test_a_row_that_adjusts_nothing_keeps_its_logits_whatever_its_slot_holds(
    owner: Owner, seed: int
) -> None:
    logits = logits_of(seed)
    inputs = input_for(owner, adjusts=False)
    found = adjust(jnp.asarray(logits), inputs, garbage(seed))
    np.testing.assert_array_equal(found, logits)


def test_rows_that_do_not_adjust_change_no_memory() -> None:
    state = garbage()
    # Two rows of padding and two of slots that adjust nothing.
    after = observe_tokens(
        state,
        slots=jnp.array([0, 0, 3, 5]),
        tokens=jnp.array([[1], [2], [3], [4]]),
        counts=jnp.zeros(NUM_ROWS, jnp.int32),
    )
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_token_is_observed_in_its_own_slot_alone() -> None:
    state = garbage()
    after = observe_tokens(
        state,
        slots=jnp.array([0, 4, 2, 0]),
        tokens=jnp.array([[9], [11], [9], [9]]),
        counts=jnp.array([0, 1, 0, 0]),
    )
    counts, recent = np.array(state.counts), np.array(state.recent)
    counts[4, 11] += 1
    recent[4] = [*recent[4, 1:], 11]
    np.testing.assert_array_equal(after.counts, counts)
    np.testing.assert_array_equal(after.recent, recent)
    np.testing.assert_array_equal(after.bias, state.bias)


def banned(
    word: tuple[int, ...], *, prompt_ids: tuple[int, ...], sampled: tuple[int, ...]
) -> set[int]:
    """The tokens forbidden after prompt and sampled tokens by one bad word."""
    owner = Owner(
        SlotAssignment(
            slot=1,
            params=SamplingParams(bad_words=("word",)),
            seed=0,
            prompt_ids=prompt_ids,
            bad_word_ids=(word,),
        ),
        sampled,
    )
    logits = jnp.zeros((NUM_ROWS, VOCAB_SIZE))
    found = adjust(logits, input_for(owner), occupy(garbage(), owner))
    return set(np.flatnonzero(np.isneginf(found[2])).tolist())


@pytest.mark.parametrize(
    ("word", "prompt_ids", "sampled", "forbidden"),
    [
        ((5,), (1,), (), {5}),
        ((5, 6), (1, 5), (), {6}),  # begun in the prompt
        ((5, 6, 7), (1, 5), (6,), {7}),  # across the border
        ((5, 6, 7), (1,), (5, 6), {7}),
        ((5, 5), (1,), (5, 5, 5), {5}),  # overlaps itself
        ((5, 6, 5, 6), (5, 6), (5,), {6}),
        ((5, 6), (1,), (5, 1), set()),  # interrupted
        ((1, 5, 6), (5,), (), set()),  # longer than the text
        ((0, 0, 0), (0,), (), set()),
        ((0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3), (4, 5, 6), {7}),  # as long as can be
    ],
)
def test_a_bad_word_is_never_completed(
    word: tuple[int, ...],
    prompt_ids: tuple[int, ...],
    sampled: tuple[int, ...],
    forbidden: set[int],
) -> None:
    assert banned(word, prompt_ids=prompt_ids, sampled=sampled) == forbidden


@pytest.mark.parametrize(
    ("num_sampled", "is_banned"), [(0, True), (2, True), (3, False), (4, False)]
)
def test_stop_tokens_are_banned_until_min_tokens_were_sampled(
    num_sampled: int, is_banned: bool
) -> None:
    owner = Owner(
        SlotAssignment(
            slot=1, params=SamplingParams(min_tokens=3), seed=0, prompt_ids=(1, 2), stop_ids=(8, 30)
        ),
        (9,) * num_sampled,
    )
    logits = jnp.zeros((NUM_ROWS, VOCAB_SIZE))
    found = np.asarray(adjust(logits, input_for(owner), occupy(garbage(), owner)))
    forbidden = np.flatnonzero(np.isneginf(found[2])).tolist()
    assert forbidden == ([8, 30] if is_banned else [])


def test_slots_of_several_rows_do_not_mix() -> None:
    """Each row is adjusted by its own slot, in an order other than the slots'."""
    assign = partial(SlotAssignment, seed=0, prompt_ids=(1,))
    owners = [
        Owner(assign(slot=slot, params=SamplingParams(logit_bias={10 + slot: 5.0})))
        for slot in (3, 1, 5)
    ]
    state = garbage()
    for owner in owners:
        state = occupy(state, owner)
    inputs = step_input(NUM_ROWS, slots=[5, 3, 0, 1], adjusts=[1, 1, 0, 1])
    found = np.asarray(adjust(jnp.zeros((NUM_ROWS, VOCAB_SIZE)), inputs, state))
    wanted = np.zeros((NUM_ROWS, VOCAB_SIZE))
    wanted[[0, 1, 3], [15, 13, 11]] = 5.0
    np.testing.assert_array_equal(found, wanted)
