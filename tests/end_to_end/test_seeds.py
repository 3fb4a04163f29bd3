"""Same request and seed, same tokens, whatever else runs and whatever happens on the way."""

from typing import Any

import pytest

from jaxserve.api.request import Request
from jaxserve.build import LoadedModel
from tests.end_to_end.world import (
    Answers,
    Golden,
    engine_for,
    mixed,
    noise,
    request,
    serve,
)


@pytest.fixture(scope="module")
def asked(stories_goldens: list[Golden]) -> list[Request]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 30, "min_p": 0.01},
        {"temperature": 1.0, "frequency_penalty": 0.5, "logprobs": 2, "n": 2},
    ]
    return [
        request(str(i), golden.prompt_ids, seed=i + 10, max_tokens=120, **kind)
        for i, (golden, kind) in enumerate(zip(stories_goldens, kinds, strict=True))
    ]


@pytest.fixture(scope="module")
def alone(stories: LoadedModel, asked: list[Request]) -> Answers:
    answers: Answers = {}
    for each in asked:
        answers |= serve(engine_for(stories), [each])
    return answers


def check(found: Answers, alone: Answers) -> None:
    for key, answer in alone.items():
        assert found[key].token_ids == answer.token_ids, key
        assert found[key].text == answer.text


def test_alone_twice(stories: LoadedModel, asked: list[Request], alone: Answers) -> None:
    check(serve(engine_for(stories, async_scheduling=False), asked), alone)


def test_in_a_busy_batch(stories: LoadedModel, asked: list[Request], alone: Answers) -> None:
    others = noise(40, vocab_size=stories.plan.model.vocab_size, max_length=60, seed=7)
    found = serve(engine_for(stories), mixed(asked, others), arrivals_per_step=2)
    check(found, alone)


def test_after_preemptions(stories: LoadedModel, asked: list[Request], alone: Answers) -> None:
    found = serve(engine_for(stories, num_pages=40), asked)
    assert sum(found[key].num_preemptions for key in alone) >= 2
    check(found, alone)


def test_other_seeds_and_other_choices_give_other_tokens(
    stories: LoadedModel, asked: list[Request], alone: Answers
) -> None:
    first = asked[0]
    others = [
        request(f"seed {seed}", first.prompt_ids, temperature=1.0, seed=seed, max_tokens=120)
        for seed in (11, -1, 2**63 - 1)
    ]
    found = serve(engine_for(stories), others)
    texts = {tuple(answer.token_ids) for answer in (*found.values(), alone["0", 0])}
    assert len(texts) == 4
    assert alone["3", 0].token_ids != alone["3", 1].token_ids


def test_without_a_seed_requests_differ(stories: LoadedModel, asked: list[Request]) -> None:
    prompt_ids = asked[0].prompt_ids
    requests = [request(name, prompt_ids, temperature=1.0, max_tokens=40) for name in "abc"]
    found = serve(engine_for(stories), requests)
    assert len({tuple(answer.token_ids) for answer in found.values()}) == 3
