"""Greedy tokens are those of transformers, token for token, however they are scheduled."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserve.api.request import Request
from jaxserve.build import LoadedModel
from tests.data import checkpoint
from tests.end_to_end.world import (
    Answers,
    Golden,
    engine_for,
    golden_requests,
    goldens,
    load,
    mixed,
    noise,
    request,
    serve,
)
from tests.goldens.checkpoints import tiny_config, write_checkpoint


def check(answers: Answers, found: list[Golden]) -> None:
    for i, golden in enumerate(found):
        assert answers[str(i), 0].token_ids == golden.token_ids, f"golden {i}"


def test_alone(stories: LoadedModel, stories_goldens: list[Golden]) -> None:
    for i, each in enumerate(golden_requests(stories_goldens)):
        answers = serve(engine_for(stories), [each])
        assert answers[str(i), 0].token_ids == stories_goldens[i].token_ids


def test_in_a_batch_of_32_of_all_kinds(stories: LoadedModel, stories_goldens: list[Golden]) -> None:
    others = noise(80, vocab_size=stories.plan.model.vocab_size, max_length=20)
    engine = engine_for(stories)
    most_running = 0

    def arrivals() -> Iterator[Request]:
        nonlocal most_running
        for each in mixed(golden_requests(stories_goldens), others):
            most_running = max(most_running, engine.engine.stats().num_running)
            yield each

    check(serve(engine, arrivals(), arrivals_per_step=3), stories_goldens)
    assert most_running == 32


@pytest.mark.parametrize("max_num_batched_tokens", [4, 7, 64])
def test_prompts_in_chunks_and_whole(
    stories: LoadedModel, stories_goldens: list[Golden], max_num_batched_tokens: int
) -> None:
    engine = engine_for(stories, max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens)
    check(serve(engine, golden_requests(stories_goldens)), stories_goldens)


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_with_and_without_the_next_step_planned_ahead(
    stories: LoadedModel, stories_goldens: list[Golden], async_scheduling: bool
) -> None:
    engine = engine_for(stories, async_scheduling=async_scheduling)
    check(serve(engine, golden_requests(stories_goldens)), stories_goldens)


def test_from_a_cold_and_from_a_hot_prefix_cache(
    stories: LoadedModel, stories_goldens: list[Golden]
) -> None:
    """The first half of each golden is the prompt, so that there are pages to share."""
    found = stories_goldens[:3]  # the fourth begins like the first
    halves = [
        request(str(i), (*golden.prompt_ids, *golden.token_ids[:100]), max_tokens=100)
        for i, golden in enumerate(found)
    ]
    engine = engine_for(stories)
    cold, hot = serve(engine, halves), serve(engine, halves)
    for i, golden in enumerate(found):
        num_prompt = len(halves[i].prompt_ids)
        assert cold[str(i), 0].num_cached_tokens == 0
        # All full pages but the one of the last token, which must be computed.
        assert hot[str(i), 0].num_cached_tokens == (num_prompt - 1) // 8 * 8
        assert cold[str(i), 0].token_ids == golden.token_ids[100:]
        assert hot[str(i), 0].token_ids == golden.token_ids[100:]


def test_from_a_prefix_that_a_generation_has_cached(
    stories: LoadedModel, stories_goldens: list[Golden]
) -> None:
    golden = stories_goldens[0]
    engine = engine_for(stories)
    serve(engine, [request("first", golden.prompt_ids, max_tokens=100)])
    prompt_ids = (*golden.prompt_ids, *golden.token_ids[:100])
    answers = serve(engine, [request("second", prompt_ids, max_tokens=100)])
    assert answers["second", 0].num_cached_tokens == 104
    assert answers["second", 0].token_ids == golden.token_ids[100:]


def test_with_no_prefix_cache(stories: LoadedModel, stories_goldens: list[Golden]) -> None:
    engine = engine_for(stories, enable_prefix_caching=False)
    for _ in range(2):
        answers = serve(engine, golden_requests(stories_goldens))
        check(answers, stories_goldens)
        assert all(answer.num_cached_tokens == 0 for answer in answers.values())


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_through_preemptions(
    stories: LoadedModel, stories_goldens: list[Golden], async_scheduling: bool
) -> None:
    # Each needs 26 to 27 pages in the end, all of them 107.
    engine = engine_for(stories, num_pages=50, async_scheduling=async_scheduling)
    answers = serve(engine, golden_requests(stories_goldens))
    check(answers, stories_goldens)
    assert engine.engine.stats().num_preemptions >= 3
    assert sum(answer.num_preemptions for answer in answers.values()) >= 3


def test_through_preemptions_among_others(
    stories: LoadedModel, stories_goldens: list[Golden]
) -> None:
    others = noise(30, vocab_size=stories.plan.model.vocab_size, max_length=100, seed=1)
    engine = engine_for(stories, num_pages=70, max_num_batched_tokens=40)
    answers = serve(engine, mixed(golden_requests(stories_goldens), others), arrivals_per_step=1)
    check(answers, stories_goldens)
    assert engine.engine.stats().num_preemptions >= 10


def test_every_choice_of_a_request(stories: LoadedModel, stories_goldens: list[Golden]) -> None:
    golden = stories_goldens[2]
    answers = serve(engine_for(stories), golden_requests(stories_goldens, n=3))
    for index in range(3):
        assert answers["2", index].token_ids == golden.token_ids
    # The prompt of 15 tokens fills a page of 8, which was computed once.
    assert [answers["2", index].num_cached_tokens for index in range(3)] == [0, 8, 8]


def test_among_requests_that_are_aborted(
    stories: LoadedModel, stories_goldens: list[Golden]
) -> None:
    others = noise(40, vocab_size=stories.plan.model.vocab_size, seed=2)
    engine = engine_for(stories, num_pages=200)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(stories_goldens))}
    for each in mixed(golden_requests(stories_goldens), others):
        engine.add(each)
    num_steps = 0
    while engine.has_work:
        for event in engine.step():
            tokens.setdefault(event.request_id, []).extend(event.token_ids)
        if num_steps % 3 == 0:
            engine.abort(f"noise {num_steps // 3}")
        num_steps += 1
    engine.engine.check_integrity()
    for i, golden in enumerate(stories_goldens):
        assert tokens[str(i)] == golden.token_ids


@pytest.mark.parametrize("name", ["stories260K-hd64-hf", "babyllama-char105-hf"])
def test_of_other_shapes(name: str) -> None:
    found = goldens(name)
    answers = serve(engine_for(load(checkpoint(name), warm_up="none")), golden_requests(found))
    check(answers, found)


@pytest.mark.parametrize("devices", [2, 4])
def test_on_several_devices(devices: int, stories_goldens: list[Golden]) -> None:
    loaded = load(checkpoint("stories260K-hf"), warm_up="none", tensor_parallel_size=devices)
    assert loaded.plan.context.mesh.devices.size == devices
    check(serve(engine_for(loaded), golden_requests(stories_goldens)), stories_goldens)


def test_a_vocabulary_that_does_not_divide_on_several_devices() -> None:
    name = "babyllama-char105-hf"
    loaded = load(checkpoint(name), warm_up="none", tensor_parallel_size=2)
    assert loaded.plan.model.vocab_padding == 1
    check(serve(engine_for(loaded), golden_requests(goldens(name))), goldens(name))


def test_more_devices_than_kv_heads(tmp_path: Path) -> None:
    hf = tiny_config("qwen3", num_attention_heads=8, num_key_value_heads=2, vocab_size=97)
    write_checkpoint(tmp_path, hf)
    tokens = []
    for devices in (1, 4):
        loaded = load(tmp_path, warm_up="none", tensor_parallel_size=devices)
        answers = serve(engine_for(loaded), noise(6, vocab_size=97, max_length=20))
        tokens.append({key: answer.token_ids for key, answer in answers.items()})
    assert tokens[0] == tokens[1]
