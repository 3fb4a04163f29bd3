"""Prompts that are pooled: scheduled as those that are answered, and ended by their vector."""

import pytest

from jaxserve.api.plan import RowPlan
from jaxserve.api.request import FinishReason, Request
from jaxserve.errors import ContextLengthError, InvalidRequestError
from jaxserve.observability.metrics import Metrics
from tests.engine.world import World, request, word_tokenizer
from tests.fakes import solo_vector

LONG = tuple(range(4, 44))


def pooled(name: str = "a", prompt_ids: tuple[int, ...] = (5, 6, 7)) -> Request:
    return Request(id=name, prompt_ids=prompt_ids, pools=True)


def vectors(world: World) -> dict[str, bytes | None]:
    lasts = {name: world.answers[name, 0].last for name in world.requests}
    return {name: last.vector for name, last in lasts.items() if last is not None}


def test_a_prompt_gets_its_vector_and_no_token() -> None:
    world = World(pools=True, tokenizer=word_tokenizer())
    world.run(pooled())
    (event,) = world.events
    assert event.vector == solo_vector((5, 6, 7))
    assert event.finish_reason is FinishReason.STOP
    assert (event.token_ids, event.text) == ((), "")


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_prompts_of_all_lengths_share_steps_in_pieces(async_scheduling: bool) -> None:
    world = World(pools=True, async_scheduling=async_scheduling)
    prompts = {str(n): tuple(range(n, 2 * n)) for n in (1, 2, 17, 25, 3, 31, 16)}
    world.run(*(pooled(name, ids) for name, ids in prompts.items()))
    assert vectors(world) == {name: solo_vector(ids) for name, ids in prompts.items()}


def test_a_prompt_starts_from_a_cached_prefix() -> None:
    world = World(pools=True)
    world.run(pooled("a", LONG))
    world.run(pooled("b", (*LONG, 3, 3)))
    last = world.answers["b", 0].last
    assert last is not None
    assert last.num_cached_tokens == 40
    assert last.vector == solo_vector((*LONG, 3, 3))


def test_a_prompt_may_fill_the_whole_context() -> None:
    world = World(pools=True, max_model_len=40)
    world.run(pooled("a", LONG))
    assert vectors(world) == {"a": solo_vector(LONG)}
    with pytest.raises(ContextLengthError, match="41"):
        world.add(pooled("b", (*LONG, 3)))


def test_whole_prompts_are_never_cut_and_short_ones_fill_the_step() -> None:
    world = World(pools=True, whole_prompts=True, max_model_len=16, enable_prefix_caching=False)
    lengths = {"a": 10, "b": 9, "c": 6, "d": 16}
    world.run(*(pooled(name, LONG[:n]) for name, n in lengths.items()))
    rows = [[row.num_tokens for row in plan.rows] for plan in world.runner.plans]
    assert rows == [[10], [9, 6], [16]]
    assert vectors(world) == {name: solo_vector(LONG[:n]) for name, n in lengths.items()}


def test_a_vector_that_is_not_finite_is_an_error() -> None:
    def fails(row: RowPlan, tokens: list[int]) -> bool:
        return tokens[0] == 9

    world = World(pools=True, fails=fails)
    world.run(pooled("a", (9, 5)), pooled("b"))
    assert world.answers["a", 0].finish_reason is FinishReason.ERROR
    assert world.answers["b", 0].finish_reason is FinishReason.STOP


def test_an_engine_either_pools_or_generates() -> None:
    with pytest.raises(InvalidRequestError, match="--runner pooling"):
        World().add(pooled())
    with pytest.raises(InvalidRequestError, match="--runner generate"):
        World(pools=True).add(request())


def test_an_aborted_prompt_leaves_nothing_behind() -> None:
    world = World(pools=True)
    world.add(pooled("a", LONG), pooled("b"))
    world.step()
    world.text.abort("a")
    world.run()
    assert world.answers["a", 0].finish_reason is FinishReason.ABORT
    assert world.answers["b", 0].finish_reason is FinishReason.STOP


def test_pooled_prompts_are_counted_and_sample_no_tokens() -> None:
    metrics = Metrics(max_model_len=64)
    world = World(pools=True, metrics=metrics.engine("m"))
    world.run(pooled("a", LONG), pooled("b"))
    stats = world.engine.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (43, 0)
