"""Packing a plan and cutting it up again, against the fields written out by hand."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jaxserve.api.plan import RowPlan, SlotAssignment, TableWrite
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.execution.batch import MIN_TEMPERATURE, Rows, SlotTable, StepInput, pack, unpack
from jaxserve.execution.shapes import FULL, GREEDY, NOTHING, SAMPLE, SCORE, Feature, StepShape

NUM_SLOTS = 6
PAGES = 5
PAGE_SIZE = 4
DECODE = StepShape(5, 5, PAGES, FULL)
MIXED = StepShape(24, 5, PAGES, FULL)
SCORED = StepShape(24, 5, PAGES, SCORE)


@cache
def compiled(shape: StepShape) -> Any:
    return jax.jit(lambda packed: unpack(packed, shape))


@dataclass(frozen=True)
class World:
    """Rows of a step, the assignments their slots had, and the pages they were given in all."""

    rows: tuple[RowPlan, ...]
    assignments: dict[int, SlotAssignment]
    pages: dict[int, list[int]]
    shape: StepShape
    features: Feature


@st.composite
def worlds(draw: st.DrawFn) -> World:
    slots = draw(st.lists(st.integers(1, NUM_SLOTS - 1), min_size=1, max_size=5, unique=True))
    shape = draw(st.sampled_from([DECODE, MIXED, SCORED]))
    rows, assignments, pages = [], {}, {}
    for slot in slots:
        num_tokens = 1 if shape is DECODE else draw(st.integers(1, 4))
        start = draw(st.integers(0, PAGES * PAGE_SIZE - num_tokens))
        is_feedback = num_tokens == 1 and draw(st.booleans())
        num_pages = -(-(start + num_tokens) // PAGE_SIZE)
        pages[slot] = draw(st.lists(st.integers(1, 99), min_size=num_pages, max_size=num_pages))
        first_new = draw(st.integers(0, num_pages))
        has_targets = shape is SCORED and draw(st.booleans())
        rows.append(
            RowPlan(
                slot=slot,
                start=start,
                num_tokens=num_tokens,
                token_ids=() if is_feedback else tuple(range(slot * 100, slot * 100 + num_tokens)),
                table=(TableWrite(first_new, tuple(pages[slot][first_new:])),),
                samples=draw(st.integers(0, num_tokens)),
                targets=tuple(range(slot, slot + num_tokens)) if has_targets else (),
            )
        )
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.001, 0.7])),
            top_k=draw(st.sampled_from([-1, 0, 9])),
            top_p=draw(st.sampled_from([0.1, 1.0])),
            min_p=draw(st.sampled_from([0.0, 0.5])),
            presence_penalty=draw(st.sampled_from([0.0, -1.0])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.5])),
            min_tokens=draw(st.sampled_from([0, 3])),
        )
        seed = draw(st.integers(0, 2**64 - 1))
        prompt_ids = (1,) * draw(st.integers(1, 9))
        assignments[slot] = SlotAssignment(
            slot=slot,
            params=params,
            seed=seed,
            prompt_ids=prompt_ids,
            output_ids=(1,) * draw(st.integers(0, 3)),
        )
    # Rows of a single token come first, as the contract has it.
    rows.sort(key=lambda row: row.num_tokens > 1)
    if any(row.targets for row in rows):
        features = SCORE
    else:
        features = draw(st.sampled_from([GREEDY, SAMPLE, FULL]))
    return World(tuple(rows), assignments, pages, shape, features)


def table_of(world: World) -> SlotTable:
    """A table whose slots were used before, and which got the older pages in an earlier step."""
    table = SlotTable(num_slots=NUM_SLOTS, pages=PAGES)
    table.page_table[1:] = 77
    for row in world.rows:
        table.assign(world.assignments[row.slot])
        (write,) = row.table
        table.page_table[row.slot, : write.column] = world.pages[row.slot][: write.column]
        table.update(row)
    return table


def packed(world: World) -> StepInput:
    step = pack(Rows(world.rows), world.features, world.shape, table_of(world))
    inputs: StepInput = compiled(world.shape)(step)
    return inputs


def padded(values: list[int], size: int) -> NDArray[np.int32]:
    return np.array(values + [0] * (size - len(values)), np.int32)


@given(world=worlds())
def test_tokens_come_through_in_order_and_the_rest_is_zero(world: World) -> None:
    inputs = packed(world)
    token_ids: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(world.rows):
        token_ids += list(row.token_ids or (0,))
        positions += range(row.start, row.start + row.num_tokens)
        sequences += [index] * row.num_tokens
        targets += [*row.targets, *[0] * (row.num_tokens - len(row.targets))]
    size = world.shape.tokens
    np.testing.assert_array_equal(inputs.token_ids, padded(token_ids, size))
    np.testing.assert_array_equal(inputs.positions, padded(positions, size))
    np.testing.assert_array_equal(inputs.row_sequences, padded(sequences, size))
    np.testing.assert_array_equal(inputs.targets, padded(targets, size))
    assert int(inputs.needs[0]) == world.features


@given(world=worlds())
def test_sequences_come_through_in_order_and_padding_is_slot_0(world: World) -> None:
    inputs = packed(world)
    rows, size = world.rows, world.shape.sequences
    wanted = {
        "slots": [row.slot for row in rows],
        "kv_lengths": [row.start + row.num_tokens for row in rows],
        "feedback": [int(not row.token_ids) for row in rows],
        "samples": [row.samples for row in rows],
    }
    for name, values in wanted.items():
        found = getattr(inputs, name)
        np.testing.assert_array_equal(found, padded(values, size), err_msg=name)
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + row.num_tokens)
    starts += [starts[-1]] * (size - len(rows))
    np.testing.assert_array_equal(inputs.query_starts, starts)


@given(world=worlds())
def test_pages_written_and_read_are_the_sequences_own_and_padding_is_page_0(world: World) -> None:
    table = np.asarray(packed(world).page_table)
    assert table.shape == (world.shape.sequences, PAGES)
    for row, found in zip(world.rows, table, strict=False):
        pages = world.pages[row.slot]
        assert found[: len(pages)].tolist() == pages
    assert not table[len(world.rows) :].any()


@given(world=worlds())
def test_parameters_come_through_by_slot_and_padding_adjusts_nothing(world: World) -> None:
    inputs = packed(world)
    for index, row in enumerate(world.rows):
        assignment = world.assignments[row.slot]
        params = assignment.params
        temperature = max(params.temperature, MIN_TEMPERATURE) if params.temperature else 0.0
        floats = {
            "temperature": temperature,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "presence": params.presence_penalty,
            "frequency": params.frequency_penalty,
            "repetition": params.repetition_penalty,
        }
        for name, value in floats.items():
            assert getattr(inputs, name)[index] == np.float32(value), name
        assert inputs.top_k[index] == max(params.top_k, 0)
        assert inputs.adjusts[index] == params.adjusts_logits
        first_stop = len(assignment.prompt_ids) + 3 if params.min_tokens else 0
        assert inputs.min_length[index] == first_stop
        low, high = (int(np.uint32(seed[index])) for seed in seeds_of(inputs))
        assert low + (high << 32) == assignment.seed
    for name in ("adjusts", "samples", "temperature"):
        assert not np.asarray(getattr(inputs, name))[len(world.rows) :].any(), name


def seeds_of(inputs: StepInput) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    return np.asarray(inputs.seed_low).view(np.uint32), np.asarray(inputs.seed_high).view(np.uint32)


@given(world=worlds())
def test_packing_writes_into_arrays_of_its_own(world: World) -> None:
    """The device may still read the arrays of the last step while the next one is packed."""
    table = table_of(world)
    first = pack(Rows(world.rows), world.features, world.shape, table)
    copy = first.copy()
    table.records[:] = 9
    pack(Rows(world.rows), world.features, world.shape, table)
    np.testing.assert_array_equal(first, copy)


def row_of(slot: int, *, samples: int = 1, targets: tuple[int, ...] = ()) -> RowPlan:
    return RowPlan(
        slot=slot, start=0, num_tokens=1, token_ids=(1,), samples=samples, targets=targets
    )


@pytest.mark.parametrize(
    ("params", "features"),
    [
        (SamplingParams(temperature=0.0), GREEDY),
        (SamplingParams(temperature=0.0, top_p=0.5), GREEDY),
        (SamplingParams(temperature=0.5), SAMPLE),
        (SamplingParams(temperature=0.0, logprobs=0), GREEDY | Feature.LOGPROBS),
        (SamplingParams(temperature=0.0, min_tokens=1), GREEDY | Feature.ADJUST),
        (SamplingParams(temperature=0.0, logit_bias={1: 1.0}), GREEDY | Feature.ADJUST),
        (SamplingParams(temperature=0.0, repetition_penalty=1.1), GREEDY | Feature.ADJUST),
        (SamplingParams(temperature=0.0, prompt_logprobs=1), GREEDY),
    ],
)
def test_a_step_does_the_least_that_its_rows_need(
    params: SamplingParams, features: Feature
) -> None:
    table = SlotTable(num_slots=4, pages=1)
    greedy = SamplingParams(temperature=0.0)
    for slot, slot_params in ((1, greedy), (2, params)):
        table.assign(SlotAssignment(slot=slot, params=slot_params, seed=0, prompt_ids=(1,)))
    assert table.needs(Rows((row_of(1), row_of(2)))) == features
    # A row that samples nothing needs nothing, and what is asked for in one slot stays there.
    assert table.needs(Rows((row_of(1), row_of(2, samples=0)))) == GREEDY
    assert table.needs(Rows((row_of(2, samples=0),))) == NOTHING
    assert table.needs(Rows((row_of(1),))) == GREEDY
    scored = table.needs(Rows((row_of(1), row_of(2, targets=(3,)))))
    assert scored == features | Feature.PROMPT_LOGPROBS


def test_a_slot_taken_again_forgets_its_last_owner() -> None:
    table = SlotTable(num_slots=2, pages=1)
    picky = SamplingParams(
        temperature=0.5, top_k=3, seed=9, logit_bias={1: 2.0}, min_tokens=4, logprobs=2
    )
    table.assign(SlotAssignment(slot=1, params=picky, seed=2**64 - 1, prompt_ids=(1, 2, 3)))
    plain = SlotAssignment(slot=1, params=SamplingParams(temperature=0.0), seed=0, prompt_ids=(1,))
    table.assign(plain)
    fresh = SlotTable(num_slots=2, pages=1)
    fresh.assign(plain)
    np.testing.assert_array_equal(table.records, fresh.records)
    assert table.num_logprobs == fresh.num_logprobs
    assert table.needs(Rows((row_of(1),))) == GREEDY
