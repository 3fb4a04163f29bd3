"""Random workloads yield the same tokens in any order and under any load, and leak nothing."""

from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.api.caches import Latent, LayerCache, Paged, Recurrent, StateArray, Window
from jaxserve.api.engine_config import WorkModel
from jaxserve.api.request import FinishReason
from jaxserve.engine.drafts import Drafter
from tests.engine.world import World, request, word_tokenizer
from tests.fakes import draft, token_logprobs

# Few different prompt openings, longer than some pages, so that prefixes are often shared, and
# often while they are being computed.
PREFIXES = ((), (1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 9, 9, 9, 9), tuple(range(10, 34)))


PAGED = Paged(kv_heads=2, head_dim=8)
WINDOW = Window(kv_heads=2, head_dim=8, window=5)
LATENT = Latent(latent_dim=24, value_dim=16)
STATE = Recurrent((StateArray((4, 8), "float32", ("heads", "head_dim")),))
# Caches of a model's layers; empty is the default of `World`, one paged group.
MIXTURES: tuple[tuple[LayerCache, ...], ...] = (
    (),
    (),
    (WINDOW,),
    (PAGED, WINDOW),
    (STATE, PAGED),
    (LATENT, WINDOW),
    (STATE, LATENT, PAGED, WINDOW),
    (WINDOW, replace(WINDOW, window=9), PAGED, STATE),
)


@dataclass(frozen=True)
class Arrival:
    """A request that arrives after `delay` steps and is aborted `patience` steps later."""

    prompt_ids: tuple[int, ...]
    delay: int
    patience: int | None
    priority: int
    salt: str
    params: dict[str, Any]


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    prefix = draw(st.sampled_from(PREFIXES))
    own = draw(st.lists(st.integers(0, 63), min_size=1, max_size=12))
    max_tokens = draw(st.integers(1, 14))
    return Arrival(
        prompt_ids=prefix + tuple(own),
        delay=draw(st.integers(0, 6)),
        patience=draw(st.none() | st.none() | st.integers(0, 12)),
        priority=draw(st.integers(-1, 1)),
        salt=draw(st.sampled_from(["", "", "tenant"])),
        params={
            "seed": draw(st.integers(0, 3)),
            "n": draw(st.sampled_from([1, 1, 1, 2, 4])),
            "max_tokens": max_tokens,
            "min_tokens": draw(st.integers(0, max_tokens)),
            "ignore_eos": draw(st.booleans()),
            # Stop strings within a word, across two, and hardly ever.
            "stop": draw(st.sampled_from([(), (), ("w1",), ("2w", "3w4"), ("w5w", "9w1w")])),
            "stop_token_ids": tuple(draw(st.lists(st.integers(0, 63), max_size=4))),
            "prompt_logprobs": draw(st.none() | st.none() | st.just(0)),
            "logprobs": draw(st.none() | st.just(0)),
        },
    )


def drafter(count: int, wrong_every: int) -> Drafter:
    return partial(draft, count=count, vocab_size=64, wrong_every=wrong_every)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    layers = draw(st.sampled_from(MIXTURES))
    # The longest prompt with the longest output, and hardly more.
    num_kinds = max(len(set(layers) - {STATE}), 1)
    smallest = num_kinds * -(-(max(map(len, PREFIXES)) + 12 + 14) // page_size) + 1
    max_num_seqs = draw(st.integers(1, 6))
    return World(
        num_pages=smallest + draw(st.integers(0, 2 * smallest)),
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 30)),
        max_decode_slowdown=draw(st.sampled_from([1.01, 2.0, inf])),
        work=WorkModel(
            free_tokens=draw(st.integers(1, 20)),
            prefill_attention=draw(st.sampled_from([0.0, 0.1, 10.0])),
            decode_attention=draw(st.sampled_from([0.0, 0.5])),
        ),
        step_sizes=draw(st.sampled_from([(), (4, 16, 64), (8, 40)])),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        async_scheduling=draw(st.booleans()),
        enable_prefix_caching=draw(st.booleans()),
        layers=layers,
        num_states=draw(st.integers(3, 9)),
        checkpoint_interval=draw(st.integers(1, 4)),
        tokenizer=word_tokenizer(),
        drafter=draw(st.none() | st.builds(drafter, st.integers(0, 4), st.integers(1, 9))),
    )


@settings(max_examples=300)
@given(world=worlds(), traffic=st.lists(arrivals(), min_size=1, max_size=14))
def test_any_traffic_gets_the_tokens_of_solo_runs_and_leaves_nothing_behind(
    world: World, traffic: list[Arrival]
) -> None:
    due: list[tuple[int, str, Arrival]] = []
    leaves: list[tuple[int, str]] = []
    now = 0
    for serial, arrival in enumerate(traffic):
        now += arrival.delay
        due.append((now, str(serial), arrival))
        if arrival.patience is not None:
            leaves.append((now + arrival.patience, str(serial)))

    aborted: set[str] = set()
    num_steps, num_expected = 0, 0
    while due or world.engine.has_work:
        while due and due[0][0] <= num_steps:
            _, name, arrival = due.pop(0)
            each = request(
                name,
                arrival.prompt_ids,
                priority=arrival.priority,
                cache_salt=arrival.salt,
                **arrival.params,
            )
            world.add(each)
            num_expected += each.params.n * (len(each.prompt_ids) + 14)
        for leave_at, name in leaves:
            if leave_at == num_steps and name in world.requests and name not in world.finished:
                world.engine.abort(name)
                aborted.add(name)
        world.step()
        num_steps += 1
        # Far more than any order of these tokens takes, unless someone is stuck or starves.
        assert num_steps < 100 + 20 * num_expected

    world.check_idle()
    for name, each in world.requests.items():
        for index in range(each.params.n):
            answer = world.answers[name, index]
            expected = world.expected(name, index)
            if answer.finish_reason is FinishReason.ABORT:
                assert name in aborted
                assert answer.token_ids == expected[: len(answer.token_ids)]
            else:
                assert answer.token_ids == expected
            check_logprobs(world, name, index)


def check_logprobs(world: World, name: str, index: int) -> None:
    """Assert that every token asked for came with its own log-probability, once."""
    each = world.requests[name]
    events = [e for e in world.events if (e.request_id, e.index) == (name, index)]
    token_ids = world.output(name, index)
    wanted = token_ids if each.params.logprobs is not None else []
    assert [lp for e in events for lp in e.logprobs] == [token_logprobs(t) for t in wanted]

    of_prompt = [e.prompt_logprobs for e in events if e.prompt_logprobs is not None]
    if each.params.prompt_logprobs is None or index > 0 or not token_ids:
        assert of_prompt == []
    else:
        assert of_prompt == [tuple(token_logprobs(t) for t in each.prompt_ids[1:])]
        assert events[0].prompt_logprobs is not None
