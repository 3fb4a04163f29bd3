"""Weights that are not numbers end the requests they touch, and no other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.api.request import FinishReason, Request
from jaxserve.build import LoadedModel
from tests.end_to_end.world import engine_for, load, request, serve, write_one_layer

# No other prompt has it, and it is never generated below.
BROKEN_TOKEN = 499


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    def break_token(tensors: dict[str, NDArray[np.float32]]) -> None:
        tensors["model.embed_tokens.weight"][BROKEN_TOKEN] = np.nan

    folder = write_one_layer(tmp_path_factory.mktemp("broken"), change=break_token)
    return load(folder, warm_up="none", max_num_seqs=8, max_num_batched_tokens=16)


def fine_requests() -> list[Request]:
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 4},
        {"repetition_penalty": 1.2, "logprobs": 1},
    ]
    return [
        request(f"fine {i}", (1, 403, 407 + i), max_tokens=60, **kind)
        for i, kind in enumerate(kinds)
    ]


def broken_requests(name: str = "broken") -> list[Request]:
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"logprobs": 2, "n": 2}]
    return [
        request(f"{name} {i}", (1, *[9] * (7 * i), BROKEN_TOKEN, 5), max_tokens=60, **kind)
        for i, kind in enumerate(kinds)
    ]


def test_requests_that_are_touched_end_with_an_error(broken: LoadedModel) -> None:
    answers = serve(engine_for(broken), broken_requests())
    assert len(answers) == 4
    for answer in answers.values():
        assert answer.finish_reason is FinishReason.ERROR
        assert answer.token_ids == []
        assert answer.error is not None
        assert "not finite" in answer.error


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_the_others_in_the_batch_get_their_tokens(
    broken: LoadedModel, async_scheduling: bool
) -> None:
    alone = serve(engine_for(broken), fine_requests())
    fine, bad = fine_requests(), broken_requests()
    requests = [bad[0], fine[0], bad[1], fine[1], bad[2], fine[2]]
    answers = serve(engine_for(broken, async_scheduling=async_scheduling), requests)
    for key, answer in alone.items():
        assert answer.finish_reason is FinishReason.LENGTH
        assert answers[key].token_ids == answer.token_ids
    assert sum(a.finish_reason is FinishReason.ERROR for a in answers.values()) == 4


def test_pages_and_slots_that_held_nan_do_no_harm_to_who_gets_them_next(
    broken: LoadedModel,
) -> None:
    alone = serve(engine_for(broken), fine_requests())
    # A pool so small that the fine requests get every page that the broken ones had.
    engine = engine_for(broken, num_pages=28)
    serve(engine, broken_requests("earlier"))
    answers = serve(engine, fine_requests())
    for key, answer in alone.items():
        assert answers[key].token_ids == answer.token_ids


def test_a_request_that_forbids_every_token_ends_with_an_error(broken: LoadedModel) -> None:
    # After one of them, the only token that is allowed would complete the bad word.
    allowed_and_bad = request("none", (1, 403), allowed_token_ids=(7,), bad_words=["word"])
    impossible = replace(allowed_and_bad, bad_word_ids=((7, 7),))
    (fine, *_) = fine_requests()
    answers = serve(engine_for(broken), [impossible, fine])
    answer = answers["none", 0]
    assert answer.finish_reason is FinishReason.ERROR
    assert answer.token_ids == [7]
    assert answer.error is not None
    assert "allowed_token_ids and bad_words allow no token after 1 tokens" in answer.error
    assert answer.error_param == "allowed_token_ids"
    assert answers[fine.id, 0].finish_reason is FinishReason.LENGTH
