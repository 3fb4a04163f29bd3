"""How much a step takes on of prompts, and which of them get it."""

from dataclasses import replace
from math import inf

import pytest

from jaxserve.api.engine_config import SchedulerConfig, WorkModel
from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.prefills import PrefillBudget, are_jumps_worth, divide, prefill_budget
from jaxserve.engine.sequence import Sequence, new_group
from tests.engine.world import request

# Twenty tokens are free, a thousand of context cost a token of a prompt as much again.
WORK = WorkModel(free_tokens=20, prefill_attention=1 / 1000, decode_attention=1 / 100)
CONFIG = SchedulerConfig(
    max_model_len=2**20,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    max_decode_slowdown=2.0,
    work=WORK,
    step_sizes=(32, 128, 512),
)


def prompt(length: int, done: int = 0, *, serial: int = 0) -> Sequence:
    """A running sequence that has computed `done` tokens of a prompt."""
    group = new_group(
        request(str(serial), (1,) * length),
        number=serial,
        order=(0, serial),
        next_seed=lambda: 0,
        eos_ids=frozenset(),
        max_length=2 * length,
        enable_prefix_caching=False,
    )
    sequence = group.sequences[0]
    sequence.enter(serial + 1, num_cached=0)
    if done:
        PlanBuilder().add_chunk(sequence, done)
    return sequence


def budget(
    prompts: list[Sequence],
    config: SchedulerConfig = CONFIG,
    *,
    max_tokens: int | None = None,
    num_decodes: int = 0,
    decode_context: int = 0,
) -> PrefillBudget:
    return prefill_budget(
        config,
        max_tokens=config.max_num_batched_tokens if max_tokens is None else max_tokens,
        num_decodes=num_decodes,
        decode_context=decode_context,
        prompts=prompts,
    )


# The budget


def test_a_prompt_alone_gets_the_largest_step() -> None:
    assert budget([prompt(10_000)]).num_tokens == 512


def test_no_more_is_planned_than_the_runner_can_do_now() -> None:
    assert budget([prompt(10_000)], max_tokens=32).num_tokens == 32
    assert budget([prompt(10_000)], max_tokens=32, num_decodes=12).num_tokens == 20


def test_beside_decodes_a_prompt_gets_the_largest_size_within_their_time() -> None:
    # Twenty decodes take twenty units: forty allow a step of 32.
    assert budget([prompt(10_000)], num_decodes=20).num_tokens == 12
    # With 14000 tokens of context they take 160: of 320, 140 are their own, 180 allow 128.
    assert budget([prompt(10_000)], num_decodes=20, decode_context=14_000).num_tokens == 108


def test_without_a_limit_decodes_get_no_more_than_their_tokens() -> None:
    config = replace(CONFIG, max_decode_slowdown=inf)
    assert budget([prompt(10_000)], config, num_decodes=20).num_tokens == 492


def test_prompts_get_on_beside_as_many_decodes_as_fill_a_size() -> None:
    assert budget([prompt(10_000)], num_decodes=32).num_tokens == 96


def test_a_step_that_padding_would_fill_takes_a_smaller_full_one() -> None:
    assert budget([prompt(170)]).num_tokens == 128
    assert budget([prompt(400)]).num_tokens == 512  # and 400 are there


@pytest.mark.parametrize("start", [0, 1000, 10_000, 100_000])
def test_steps_take_about_the_same_time_at_any_context(start: int) -> None:
    decodes = 16 + 4  # 16 of them, of whose time 4 units are left
    sequence = prompt(200_000, start)
    ((_, num_tokens),) = divide([sequence], budget([sequence], num_decodes=16), WORK)
    padded = next(size for size in CONFIG.step_sizes if size >= 16 + num_tokens)
    taken = padded + WORK.attention(start, num_tokens)
    # One token is the least, and costs more than the rest where it is this deep.
    assert taken <= max(2 * decodes, padded + WORK.attention(start, 1))


# The division


def shares(prompts: list[Sequence], num_tokens: int, attention: float = inf) -> dict[int, int]:
    """Tokens by the place of a prompt among the others."""
    divided = divide(prompts, PrefillBudget(num_tokens, attention), WORK)
    return {prompts.index(sequence): count for sequence, count in divided}


def test_a_short_prompt_gets_half_beside_a_long_one() -> None:
    assert shares([prompt(5000), prompt(300)], 100) == {0: 50, 1: 50}


def test_what_the_short_one_leaves_goes_to_the_long_one() -> None:
    assert shares([prompt(5000), prompt(10)], 100) == {0: 90, 1: 10}


def test_the_one_with_the_least_to_compute_is_the_short_one() -> None:
    assert shares([prompt(5000), prompt(900), prompt(1000, 900)], 100) == {0: 50, 2: 50}


def test_equal_prompts_are_computed_in_order_of_precedence() -> None:
    assert shares([prompt(80), prompt(80), prompt(80)], 100) == {0: 80, 1: 20}


def test_a_long_context_gets_fewer_tokens_of_the_same_work() -> None:
    early, late = (shares([prompt(50_000, done)], 100, attention=40.0)[0] for done in (0, 10_000))
    assert (early, late) == (100, 3)


def test_however_deep_a_prompt_is_it_gets_a_token() -> None:
    assert shares([prompt(50_000, 40_000), prompt(50_000, 40_000)], 100, attention=1.0) == {0: 1}


def test_no_prompt_gets_more_than_it_lacks_and_none_two_shares() -> None:
    assert shares([prompt(30), prompt(20), prompt(10)], 100) == {0: 30, 1: 20, 2: 10}


def test_a_budget_used_up_to_the_last_bit_leaves_nothing() -> None:
    assert WORK.tokens_within(0, -1e-18) == 0


# Jumps


@pytest.mark.parametrize(
    ("num_decodes", "num_jumps", "num_tokens", "expected"),
    [
        (0, 1, 5, True),  # alone: 32 tokens take less than 5 steps of 20
        (63, 1, 5, False),  # 128 tokens, for everybody, so that one saves 4 of 64
        (0, 64, 128, True),  # no sequence is decoding
        (20, 4, 12, True),  # a step of 32 is full, and little longer than one of 24
    ],
)
def test_jumps_are_computed_at_once_where_that_takes_less_time(
    num_decodes: int, num_jumps: int, num_tokens: int, expected: bool
) -> None:
    is_worth = are_jumps_worth(
        CONFIG, num_decodes=num_decodes, num_jumps=num_jumps, num_tokens=num_tokens
    )
    assert is_worth == expected
