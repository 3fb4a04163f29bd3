"""Groups of layers that keep different things of a sequence, in one scheduler."""

import re

import pytest

from jaxserve.api.caches import (
    CacheLayout,
    CacheSizes,
    Paged,
    PagedGroup,
    Place,
    Recurrent,
    Shared,
    StateArray,
    StateGroup,
    Window,
    WindowGroup,
    plan_layout,
)
from jaxserve.api.engine_config import CacheConfig
from jaxserve.observability.metrics import Metrics, render
from tests.engine.world import World, request

PAGED = Paged(kv_heads=2, head_dim=8)
WINDOW = Window(kv_heads=2, head_dim=8, window=6)
STATE = Recurrent((StateArray((4, 8), "float32", ("heads", "head_dim")),))
SIZES = CacheSizes(page_size=4, max_model_len=64, tokens_in_flight=16, checkpoint_interval=2)
LONG = tuple(range(10, 58))


def layout(*layers: Paged | Window | Recurrent | Shared) -> CacheLayout:
    return plan_layout(layers, SIZES)


# Layouts


def test_layers_that_keep_the_same_are_one_group_with_an_array_each() -> None:
    assert layout(PAGED, PAGED) == CacheLayout(
        groups=(PagedGroup(layers=(0, 1), max_pages=16),),
        pools=layout(PAGED, PAGED).pools,
        places=(Place(0, 0), Place(0, 1)),
    )
    assert [pool.num_arrays for pool in layout(PAGED, PAGED).pools] == [2]


def test_groups_whose_pages_look_the_same_share_arrays() -> None:
    found = layout(WINDOW, PAGED, WINDOW, PAGED)
    assert found.groups == (
        WindowGroup(layers=(0, 2), max_pages=8, window=6),
        PagedGroup(layers=(1, 3), first_column=9, max_pages=16),
    )
    assert found.places == (Place(0, 0), Place(1, 0), Place(0, 1), Place(1, 1))
    assert [pool.num_arrays for pool in found.pools] == [2]
    assert found.num_columns == 25


def test_the_fullest_pool_limits_concurrency() -> None:
    found = layout(WINDOW, PAGED, STATE)
    # 8 + 16 pages of tokens and the states of one sequence.
    states = found.max_pages(1)
    cache = CacheConfig(num_pages=(1 + 36, 1 + 9 * states), page_size=4, groups=found.groups)
    assert cache.max_concurrency == 1.5
    cache = CacheConfig(num_pages=(1 + 240, 1 + 9 * states), page_size=4, groups=found.groups)
    assert cache.max_concurrency == 9


def test_a_large_group_is_divided_where_padding_would_waste_much() -> None:
    found = layout(PAGED, *[WINDOW] * 5)
    assert [len(group.layers) for group in found.groups] == [1] * 6
    assert found.pools[0].num_arrays == 1
    padded = layout(*[PAGED] * 5, *[WINDOW] * 6)
    assert [len(group.layers) for group in padded.groups] == [5, 6]
    assert padded.pools[0].num_arrays == 6


def test_pages_that_look_different_have_pools_of_their_own() -> None:
    found = layout(STATE, PAGED, STATE)
    assert found.groups == (
        StateGroup(layers=(0, 2), checkpoint_interval=2),
        PagedGroup(layers=(1,), pool=1, first_column=2, max_pages=16),
    )
    assert found.places == (Place(0, 0), Place(1, 2), Place(0, 1))
    assert [found.pages_of(array) for array in range(3)] == [STATE.pages, STATE.pages, PAGED.pages]


def test_a_layer_that_shares_has_the_place_of_the_other() -> None:
    found = layout(PAGED, WINDOW, Shared(0), Shared(2))
    assert found.places == (Place(0, 0), Place(1, 0), Place(0, 0), Place(0, 0))
    with pytest.raises(ValueError, match="layer 1 can share with an earlier layer, got 1"):
        layout(PAGED, Shared(1))


def test_a_model_that_keeps_nothing_counts_pages_all_the_same() -> None:
    found = layout()
    assert [len(group.layers) for group in found.groups] == [0]
    assert (found.places, found.pools[0].num_arrays) == ((), 0)


# Windows


def test_pages_behind_a_window_are_released_while_the_sequence_runs() -> None:
    world = World(num_pages=12, page_size=4, max_num_batched_tokens=8, layers=[WINDOW])
    world.run(request("a", LONG, max_tokens=14))
    assert world.output() == world.expected()
    most = max(stats.num_pages_used for stats in world.stats)
    # The window, two steps in flight, and pages begun at both ends.
    assert most <= 8
    assert world.engine.stats().num_released_pages >= 12


def test_released_pages_are_counted_in_the_metrics() -> None:
    metrics = Metrics(max_model_len=64)
    world = World(num_pages=20, layers=[WINDOW], metrics=metrics.engine("tiny"))
    world.run(request("a", LONG, max_tokens=14))
    (value,) = re.findall(
        rb"^jaxserve:kv_pages_released_total.* (.*)$", render(metrics.snapshot()), re.MULTILINE
    )
    assert float(value) == world.engine.stats().num_released_pages > 0


def test_a_sequence_longer_than_the_pool_runs_in_a_window() -> None:
    world = World(
        num_pages=9, page_size=4, max_num_batched_tokens=8, max_model_len=2000, layers=[WINDOW]
    )
    prompt_ids = [token % 50 for token in range(1900)]
    world.run(request("a", prompt_ids, max_tokens=50, ignore_eos=True))
    assert world.output() == world.expected()


def test_a_prompt_is_found_by_the_pages_of_its_last_window() -> None:
    world = World(num_pages=12, page_size=4, max_num_batched_tokens=8, layers=[WINDOW])
    world.run(request("a", LONG))
    num_computed = world.runner.num_computed_tokens
    world.run(request("b", LONG))
    assert world.output("b") == world.output("a")
    assert world.runner.num_computed_tokens - num_computed < len(LONG) // 2


def test_a_hit_is_the_longest_that_all_groups_accept() -> None:
    world = World(num_pages=200, page_size=4, layers=[PAGED, WINDOW])
    world.run(request("a", LONG, max_tokens=1))
    # Another prompt that is equal up to the middle of a page.
    world.run(request("b", (*LONG[:30], *LONG[:5]), max_tokens=1))
    assert world.cached("b") == 28


def test_a_hit_ends_where_a_window_has_been_evicted() -> None:
    world = World(num_pages=16, page_size=4, max_num_batched_tokens=8, layers=[WINDOW])
    world.run(request("a", LONG, max_tokens=1))
    world.run(request("b", LONG[::-1], max_tokens=1))
    world.run(request("c", LONG[:13], max_tokens=1))
    assert world.cached("c") == 0
    assert world.output("c") == world.expected("c")


# States


@pytest.mark.parametrize("layers", [[STATE], [STATE, PAGED], [PAGED, WINDOW, STATE]])
def test_a_prompt_starts_from_the_last_checkpoint(layers: list[Paged | Recurrent]) -> None:
    world = World(num_pages=100, page_size=4, checkpoint_interval=100, layers=layers)
    world.run(request("a", LONG, max_tokens=1), request("b", LONG, max_tokens=1))
    # The last full page before the last token.
    assert world.cached("b") == 44
    assert world.output("b") == world.expected("b")


def test_checkpoints_are_made_at_intervals_of_prompt_and_answer() -> None:
    world = World(
        num_pages=100, max_model_len=100, page_size=4, checkpoint_interval=4, layers=[STATE, PAGED]
    )
    world.run(request("a", LONG[:20], max_tokens=40, ignore_eos=True))
    turn = (*LONG[:20], *world.output("a"))
    world.run(request("b", (*LONG[:18], 1, 2, 3)))
    world.run(request("c", (*turn, 1, 2, 3)))
    assert (world.cached("b"), world.cached("c")) == (16, 56)
    assert world.output("c") == world.expected("c")


def test_choices_start_from_one_state() -> None:
    world = World(num_pages=100, layers=[STATE, PAGED], num_states=12)
    world.run(request("a", LONG, n=4))
    assert [world.output("a", index) for index in range(4)] == [
        world.expected("a", index) for index in range(4)
    ]
    assert world.runner.num_computed_tokens < 2 * len(LONG) + 4 * 8


def test_without_room_for_checkpoints_nothing_is_found_and_all_finish() -> None:
    world = World(num_pages=100, layers=[STATE, PAGED], num_states=3, max_num_seqs=2)
    for name in "abcd":
        world.add(request(name, LONG))
    world.run()
    for name in "abcd":
        assert world.output(name) == world.expected(name)


def test_every_turn_of_a_chat_starts_from_the_answer_before() -> None:
    world = World(num_pages=200, page_size=4, max_model_len=300, layers=[STATE, PAGED])
    turn, num_known = LONG[:9], 0
    for number in range(10):
        world.run(request(str(number), turn, max_tokens=10, ignore_eos=True))
        assert world.output(str(number)) == world.expected(str(number))
        if number:
            # All full pages of the last turn, whose last token has not been computed.
            assert world.cached(str(number)) == num_known // 4 * 4
        turn = (*turn, *world.output(str(number)))
        num_known = len(turn) - 1
        turn = (*turn, *LONG[number : number + 3])


def test_an_answer_keeps_one_checkpoint() -> None:
    world = World(
        num_pages=200,
        page_size=4,
        max_model_len=300,
        checkpoint_interval=100,
        layers=[STATE, PAGED],
    )
    turn = LONG[:9]
    world.run(request("a", turn, max_tokens=40, ignore_eos=True))
    answer = world.output("a")
    world.run(request("b", (*turn, *answer[:20], 1, 2, 3, 4)))
    assert world.cached("b") == 8
    world.run(request("c", (*turn, *answer, 1, 2, 3, 4)))
    assert world.cached("c") == 48


def test_the_third_of_prompts_with_one_beginning_starts_after_it() -> None:
    world = World(num_pages=100, page_size=4, checkpoint_interval=100, layers=[STATE, PAGED])
    for name, own in (("a", 1), ("b", 2), ("c", 3)):
        world.run(request(name, (*LONG[:22], own, own, own), max_tokens=1))
    assert [world.cached(name) for name in "abc"] == [0, 0, 20]
    # The second found pages, but no state after them.
    assert world.engine.stats().prefix_stateless == 20
    assert world.output("c") == world.expected("c")
