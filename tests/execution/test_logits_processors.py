"""Logits processors: whom they apply to, what requests may tell them, and where they are found."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.api.plan import SlotAssignment
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import ConfigError, InvalidRequestError
from jaxserve.execution import sampling
from jaxserve.execution.logits_processors import (
    LogitsProcessor,
    LogitsProcessors,
    ProcessorInput,
    place_of,
)
from jaxserve.execution.state import SlotState, abstract_state, assign_slot, slot_row
from tests.execution.inputs import step_input

VOCAB_SIZE = 8


class Add(LogitsProcessor):
    """Adds a number to all logits."""

    names = ("add",)

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        return logits + inputs.values


class Repeat(LogitsProcessor):
    """Allows nothing but what was generated last, twice as likely as `strong` is."""

    names = ("repeat", "strong")

    @property
    def num_values(self) -> int:
        return 1

    def values(self, arguments: Mapping[str, Any]) -> Sequence[float]:
        return [2.0 * arguments.get("strong", 1.0)]

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        is_last = jnp.arange(logits.shape[1]) == inputs.recent[:, -1:]
        return jnp.where(is_last, inputs.values, -jnp.inf)


class Double(LogitsProcessor):
    """Doubles the logits of every request."""

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        return 2.0 * logits


def processors(*kinds: type[LogitsProcessor]) -> LogitsProcessors:
    return LogitsProcessors.load(map(place_of, kinds), vocab_size=VOCAB_SIZE)


def adjusted(found: LogitsProcessors, *requests: SamplingParams) -> np.ndarray:
    """The logits 1, 2, ... of a row for each request, whose prompt is (5,), as a step has them."""
    described = abstract_state(
        num_slots=len(requests) + 1, vocab_size=VOCAB_SIZE, extra_size=found.row_size
    )
    state: SlotState[jax.Array] = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), described
    )
    adjusts = []
    for slot, params in enumerate(requests, start=1):
        row = found.row(params)
        adjusts.append(params.adjusts_logits or row is not None)
        if adjusts[-1]:
            assignment = SlotAssignment(slot=slot, params=params, seed=0, prompt_ids=(5,))
            memory = slot_row(
                assignment,
                vocab_size=VOCAB_SIZE,
                extra=np.zeros(found.row_size, np.float32) if row is None else row,
            )
            state = jax.jit(assign_slot)(state, np.int32(slot), memory)
    logits = jnp.tile(jnp.arange(1.0, VOCAB_SIZE + 1), (len(requests), 1))
    inputs = step_input(len(requests), slots=np.arange(1, len(requests) + 1), adjusts=adjusts)
    return np.asarray(sampling.adjust(logits, inputs, state, found))


def test_a_processor_changes_the_rows_that_ask_for_it_alone() -> None:
    rows = adjusted(
        processors(Add), SamplingParams(extra_args={"add": 3}), SamplingParams(), SamplingParams()
    )
    np.testing.assert_array_equal(rows - np.arange(1, VOCAB_SIZE + 1), [[3] * 8, [0] * 8, [0] * 8])


def test_one_without_names_applies_to_every_request() -> None:
    rows = adjusted(processors(Double), SamplingParams(), SamplingParams(top_k=3))
    np.testing.assert_array_equal(rows, 2.0 * np.tile(np.arange(1, VOCAB_SIZE + 1), (2, 1)))


def test_several_apply_in_their_order() -> None:
    params = SamplingParams(extra_args={"add": 1})
    plus_then_double = adjusted(processors(Add, Double), params)
    np.testing.assert_array_equal(plus_then_double[0], 2.0 * (np.arange(1, VOCAB_SIZE + 1) + 1))


def test_a_processor_knows_the_tokens_of_its_row() -> None:
    (row,) = adjusted(processors(Repeat), SamplingParams(extra_args={"strong": 4}))
    assert np.flatnonzero(np.isfinite(row)).tolist() == [5]
    assert row[5] == 8.0


def test_bans_have_the_last_word() -> None:
    params = SamplingParams(extra_args={"add": 100}, allowed_token_ids=(2, 3))
    (row,) = adjusted(processors(Add), params)
    assert np.flatnonzero(np.isfinite(row)).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("extra_args", "message"),
    [
        ({"subtract": 1}, "no argument 'subtract': there is add"),
        ({"add": "much"}, r"extra_args\.add must be a finite number, got 'much'"),
        ({"add": True}, "must be a finite number"),
        ({"add": float("nan")}, "must be a finite number"),
    ],
)
def test_other_arguments_are_refused(extra_args: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        processors(Add).check(SamplingParams(extra_args=extra_args))


def test_without_processors_every_argument_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no logits processor that reads any"):
        LogitsProcessors().check(SamplingParams(extra_args={"add": 1}))


def test_without_processors_a_slot_remembers_nothing_of_them() -> None:
    assert LogitsProcessors().row_size == 0
    assert LogitsProcessors().row(SamplingParams()) is None


@pytest.mark.parametrize(
    "place", ["nowhere:Add", "os:nothing", "os", "os:path", "json:JSONDecoder"]
)
def test_what_is_no_processor_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="logits_processors must be"):
        LogitsProcessors.load([place], vocab_size=VOCAB_SIZE)


def test_programs_compiled_with_other_processors_are_others() -> None:
    assert processors(Add).key != processors(Double).key != LogitsProcessors().key
