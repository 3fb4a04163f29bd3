"""Beam search, on a model small enough to look at every text it can write."""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.api.request import FinishReason, PositionLogprobs, Request, TokenLogprob
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.beam_search import BeamSearch, BeamSearchParams, check_search

EOS = 0
VOCAB_SIZE = 4
PROMPT = (3,)


class Model:
    """Random log-probabilities of the next of four tokens, by the tokens before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        rng = np.random.default_rng([self._seed, *token_ids])
        logits = 2.0 * rng.standard_normal(VOCAB_SIZE)
        scores: list[float] = (logits - np.log(np.exp(logits).sum())).tolist()
        return scores

    def report(self, request: Request) -> PositionLogprobs:
        scores = self.logprobs(request.prompt_ids)
        ranked = sorted(range(VOCAB_SIZE), key=lambda token: -scores[token])
        top = tuple(
            TokenLogprob(token, scores[token], rank) for rank, token in enumerate(ranked, start=1)
        )
        assert request.params.logprobs is not None
        count = request.params.logprobs
        return PositionLogprobs(top[0], top if count == -1 else top[:count])

    def answers(self, max_tokens: int) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every answer there is, with its log-probability."""
        for length in range(1, max_tokens + 1):
            for token_ids in product(range(VOCAB_SIZE), repeat=length):
                is_ended = token_ids[-1] == EOS
                if EOS in token_ids[:-1] or not (is_ended or length == max_tokens):
                    continue
                yield (
                    token_ids,
                    sum(
                        self.logprobs(PROMPT + token_ids[:i])[token]
                        for i, token in enumerate(token_ids)
                    ),
                )


def search(model: Model, *, logprobs: int | None = None, **params: float) -> BeamSearch:
    request = Request(
        id="r", prompt_ids=PROMPT, params=SamplingParams(max_tokens=9, logprobs=logprobs)
    )
    searching = BeamSearch(request, BeamSearchParams(**params), eos_ids=(EOS,))  # type: ignore[arg-type]
    while requests := searching.requests():
        searching.extend([model.report(each) for each in requests])
    return searching


@given(seed=st.integers(0, 10**6), length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
def test_with_beams_for_every_text_the_best_answers_are_found(
    seed: int, length_penalty: float
) -> None:
    model = Model(seed)
    best = search(model, beam_width=64, max_tokens=3, length_penalty=length_penalty).best()
    scores = {
        token_ids: logprob / max(1, len(token_ids) - (token_ids[-1] == EOS)) ** length_penalty
        for token_ids, logprob in model.answers(3)
    }
    expected = sorted(scores, key=lambda token_ids: scores[token_ids], reverse=True)
    assert [scores[beam.token_ids] for beam in best] == pytest.approx(
        [scores[token_ids] for token_ids in expected[: len(best)]]
    )
    assert len(best) == min(64, len(expected))


@given(seed=st.integers(0, 10**6), width=st.integers(1, 4))
def test_ending_early_changes_no_answer(seed: int, width: int) -> None:
    model = Model(seed)
    early = search(model, beam_width=width, max_tokens=6)
    request = Request(id="r", prompt_ids=PROMPT, params=SamplingParams(max_tokens=9))
    patient = BeamSearch(request, BeamSearchParams(beam_width=width, max_tokens=6), eos_ids=(EOS,))
    patient._is_decided = lambda: not patient._beams  # type: ignore[method-assign]
    while requests := patient.requests():
        patient.extend([model.report(each) for each in requests])
    assert early.best() == patient.best()


def test_one_beam_is_greedy() -> None:
    model = Model(7)
    (best,) = search(model, beam_width=1, max_tokens=5, ignore_eos=True).best()
    greedy: tuple[int, ...] = ()
    for _ in range(5):
        greedy += (int(np.argmax(model.logprobs(PROMPT + greedy))),)
    assert best.token_ids == greedy
    assert best.finish_reason is FinishReason.LENGTH


def test_answers_carry_the_log_probabilities_of_their_own_tokens() -> None:
    model = Model(3)
    for beam in search(model, beam_width=3, max_tokens=4, logprobs=1).best():
        assert [position.chosen.token_id for position in beam.logprobs] == [*beam.token_ids]
        assert [len(position.top) for position in beam.logprobs] == [1] * len(beam.token_ids)
        total = math.fsum(position.chosen.logprob for position in beam.logprobs)
        assert beam.cum_logprob == pytest.approx(total)


def test_all_alternatives_are_told_when_asked_for() -> None:
    for beam in search(Model(3), beam_width=1, max_tokens=2, logprobs=-1).best():
        assert [len(position.top) for position in beam.logprobs] == [VOCAB_SIZE] * 2


def test_a_wider_search_finds_no_worse_an_answer_here() -> None:
    model = Model(11)
    scores = []
    for width in (1, 2, 4, 16):
        found = search(model, beam_width=width, max_tokens=4)
        scores.append(found.score(found.best()[0]))
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    "fields", [{"beam_width": 0}, {"max_tokens": 0}, {"length_penalty": 99.0}, {"temperature": 0.7}]
)
def test_values_out_of_range_are_refused(fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(InvalidRequestError, match=f"{name} must be"):
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 2} | fields))  # type: ignore[arg-type]


def test_a_search_needs_enough_alternatives_and_their_log_probabilities() -> None:
    check_search(10, max_logprobs=20, logprobs_mode="processed_logprobs")
    with pytest.raises(InvalidRequestError, match="n must be at most 10"):
        check_search(11, max_logprobs=20, logprobs_mode="raw_logprobs", param="n")
    with pytest.raises(InvalidRequestError, match="which logprobs_mode raw_logits does not return"):
        check_search(1, max_logprobs=20, logprobs_mode="raw_logits")
