"""Request parameters on a real model, against its plain forward pass, one token at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.api.request import FinishReason, PositionLogprobs, Request
from jaxserve.build import LoadedModel
from jaxserve.loading.weights import load_model
from tests.data import checkpoint
from tests.end_to_end.world import Answer, Golden, engine_for, mixed, noise, request, serve
from tests.execution import oracle

PADDED_LENGTH = 64

type Forward = Callable[[tuple[int, ...]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def forward() -> Forward:
    """The model without an engine: logits [tokens, vocab] of a whole text."""
    model = jax.jit(load_model(checkpoint("stories260K-hf")))

    def run(token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        padding = (0,) * (PADDED_LENGTH - len(token_ids))
        return np.asarray(model(jnp.array(token_ids + padding)))[: len(token_ids)]

    return run


def continue_greedily(forward: Forward, asked: Request, stop_ids: tuple[int, ...]) -> list[int]:
    """The tokens of a greedy request by definition."""
    output_ids: list[int] = []
    assert asked.params.max_tokens is not None
    while len(output_ids) < asked.params.max_tokens:
        logits = oracle.adjusted(
            forward((*asked.prompt_ids, *output_ids))[-1],
            asked.params,
            prompt_ids=asked.prompt_ids,
            output_ids=output_ids,
            stop_ids=stop_ids,
            bad_word_ids=asked.bad_word_ids,
        )
        output_ids.append(int(logits.argmax()))
        if output_ids[-1] in stop_ids:
            break
    return output_ids


# The first golden goes "..., there was a little girl named Lily." in these tokens.
LILY = (432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426)
ASKED: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.4},
    "repetition_below_1": {"repetition_penalty": 0.8},
    "frequency": {"frequency_penalty": 1.0},
    "frequency_below_0": {"frequency_penalty": -2.0},
    "presence": {"presence_penalty": 1.5},
    "bias": {"logit_bias": {LILY[0]: -100.0, LILY[2]: -5.0, 300: 9.0}},
    "allowed": {"allowed_token_ids": (LILY[0], 383, 286, 261, 400, 420)},
    "stop": {"stop_token_ids": (LILY[5],)},
    "stop_after_min_tokens": {"stop_token_ids": (*LILY, 267, 335, 337, 410), "min_tokens": 30},
    "min_tokens_at_once": {"stop_token_ids": (LILY[0],), "min_tokens": 1},
    "all": {
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logit_bias": {LILY[3]: -3.0},
        "min_tokens": 12,
        "stop_token_ids": (LILY[7],),
    },
}
WORDS = {
    "a_bad_token": ((LILY[1],),),
    "a_bad_pair": (LILY[3:5],),
    "bad_words_that_overlap": (LILY[2:5], LILY[3:6], (LILY[0], 381)),
    "a_bad_word_begun_in_the_prompt": ((378, LILY[0]),),
    "a_bad_word_of_8_tokens": (LILY[1:9],),
}


def requests_of(golden: Golden) -> dict[str, Request]:
    asked = {
        name: request(name, golden.prompt_ids, max_tokens=40, **params)
        for name, params in ASKED.items()
    }
    for name, words in WORDS.items():
        plain = request(name, golden.prompt_ids, max_tokens=40, bad_words=["word"])
        asked[name] = replace(plain, bad_word_ids=words)
    return asked


@pytest.fixture(scope="module")
def answers(stories: LoadedModel, stories_goldens: list[Golden]) -> dict[str, Answer]:
    """All of them in one busy batch, with preemptions."""
    others = noise(20, vocab_size=stories.plan.model.vocab_size, max_length=40, seed=4)
    asked = list(requests_of(stories_goldens[0]).values())
    engine = engine_for(stories, num_pages=40)
    found = serve(engine, mixed(asked, others), arrivals_per_step=3)
    # What a slot is told when a sequence takes it again matters most to this one.
    assert found["stop_after_min_tokens", 0].num_preemptions > 0
    return {each.id: found[each.id, 0] for each in asked}


@pytest.mark.parametrize("name", [*ASKED, *WORDS])
def test_tokens_are_those_of_the_definition(
    name: str, answers: dict[str, Answer], forward: Forward, stories_goldens: list[Golden]
) -> None:
    golden = stories_goldens[0]
    asked = requests_of(golden)[name]
    stop_ids = asked.params.stop_token_ids
    wanted = continue_greedily(forward, asked, stop_ids)
    # Otherwise nothing would be shown.
    assert wanted != golden.token_ids[:40]
    found = answers[name]
    assert found.token_ids == wanted
    is_stopped = wanted[-1] in stop_ids
    assert found.finish_reason == (FinishReason.STOP if is_stopped else FinishReason.LENGTH)
    assert found.stop_reason == (wanted[-1] if is_stopped else None)


def check_logprobs(found: PositionLogprobs, logits: NDArray[np.float32], count: int) -> None:
    scores = np.log(oracle.distribution(logits))
    chosen = found.chosen
    assert abs(chosen.logprob - scores[chosen.token_id]) < 1e-4
    assert chosen.rank == 1 + (scores > scores[chosen.token_id]).sum()
    best = np.argsort(-scores)[:count]
    assert [top.token_id for top in found.top] == best.tolist()
    assert [top.rank for top in found.top] == list(range(1, count + 1))
    np.testing.assert_allclose([top.logprob for top in found.top], scores[best], atol=1e-4)


@pytest.mark.parametrize("max_num_batched_tokens", [4, 64])
def test_prompt_logprobs_are_those_of_the_forward_pass(
    stories: LoadedModel,
    forward: Forward,
    stories_goldens: list[Golden],
    max_num_batched_tokens: int,
) -> None:
    """In chunks and whole, with a prefix of the prompt in the cache."""
    prompt_ids = (*stories_goldens[2].prompt_ids, *stories_goldens[2].token_ids[:40])
    engine = engine_for(stories, max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens)
    serve(engine, [request("first", prompt_ids, max_tokens=1)])
    answers = serve(engine, [request("second", prompt_ids, max_tokens=3, prompt_logprobs=4)])
    found = answers["second", 0].prompt_logprobs
    assert found is not None
    assert [position.chosen.token_id for position in found] == list(prompt_ids[1:])
    for position, logits in zip(found, forward(prompt_ids)[:-1], strict=True):
        check_logprobs(position, logits, 4)
    assert answers["second", 0].token_ids == stories_goldens[2].token_ids[40:43]


def test_logprobs_are_those_of_transformers(
    stories: LoadedModel, stories_goldens: list[Golden]
) -> None:
    requests = [
        request(str(i), golden.prompt_ids, logprobs=5) for i, golden in enumerate(stories_goldens)
    ]
    answers = serve(engine_for(stories, num_pages=60), requests)
    for i, golden in enumerate(stories_goldens):
        found = answers[str(i), 0].logprobs
        assert [position.chosen.token_id for position in found] == golden.token_ids
        assert all(position.chosen.rank == 1 for position in found)
        logprobs = [position.chosen.logprob for position in found]
        np.testing.assert_allclose(logprobs, golden.logprobs, atol=1e-4)
        first = found[0].top
        assert [top.token_id for top in first] == [token for token, _ in golden.first_step_top5]
        # Logits less the greatest are log-probabilities less the greatest.
        gaps = np.array([logit for _, logit in golden.first_step_top5])
        found_gaps = np.array([top.logprob for top in first])
        np.testing.assert_allclose(found_gaps - found_gaps[0], gaps - gaps[0], atol=1e-4)


def test_logprobs_are_of_the_model_and_not_of_what_was_asked(
    stories: LoadedModel, forward: Forward, stories_goldens: list[Golden]
) -> None:
    golden = stories_goldens[0]
    asked = request(
        "a", golden.prompt_ids, max_tokens=1, temperature=3.0, logprobs=3, logit_bias={300: 100.0}
    )
    answer = serve(engine_for(stories), [asked])["a", 0]
    assert answer.token_ids == [300]
    check_logprobs(answer.logprobs[0], forward(golden.prompt_ids)[-1], 3)
