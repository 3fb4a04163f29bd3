"""Validation of `SamplingParams`, and its error messages."""

from typing import Any

import pytest

from jaxserve.api.limits import MAX_COUNT
from jaxserve.api.request import Request
from jaxserve.api.sampling_params import UNSERVED, SamplingParams
from jaxserve.errors import InvalidRequestError


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "min_tokens"])
def test_counts_fit_the_device(name: str) -> None:
    fields: dict[str, Any] = {"max_tokens": None, name: MAX_COUNT}
    SamplingParams(**fields)
    with pytest.raises(InvalidRequestError, match=f"{name} must be in .*{MAX_COUNT}.*, got"):
        SamplingParams(**{**fields, name: MAX_COUNT + 1})


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("name", ["temperature", "presence_penalty"])
def test_numbers_out_of_every_range_are_refused_by_name(name: str, value: object) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(InvalidRequestError, match=f"{name} must be") as raised:
        SamplingParams(**fields)
    assert raised.value.param == name
    assert len(raised.value.message) < 150


@pytest.mark.parametrize("name", ["n", "seed", "top_k", "logprobs"])
def test_a_huge_integer_is_shown_in_short(name: str) -> None:
    fields: dict[str, Any] = {name: 10**400}
    with pytest.raises(InvalidRequestError, match=f"{name} must be in .* got 1000") as raised:
        SamplingParams(**fields)
    assert len(raised.value.message) < 150


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop", 5), ("stop_token_ids", 5), ("allowed_token_ids", 5), ("logit_bias", [1])],
)
def test_lists_and_maps_of_another_kind_are_refused_by_name(name: str, value: object) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(InvalidRequestError, match=f"{name} must"):
        SamplingParams(**fields)


def test_none_stands_for_what_is_not_given() -> None:
    fields: dict[str, Any] = dict.fromkeys(("stop", "stop_token_ids", "bad_words", "logit_bias"))
    assert SamplingParams(**fields) == SamplingParams()


def test_a_limit_is_lowered_to_the_room_there_is() -> None:
    params = SamplingParams(max_tokens=16, min_tokens=3)
    assert params.within(16) is params
    assert params.within(3) == SamplingParams(max_tokens=3, min_tokens=3)
    unlimited = SamplingParams(max_tokens=None)
    assert unlimited.within(3) is unlimited


def test_no_limit_is_lowered_below_what_was_asked_for() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens must be at most max_tokens"):
        SamplingParams(max_tokens=16, min_tokens=3).within(2)


@pytest.mark.parametrize(
    ("params", "bad_word_ids", "words"),
    [
        ({"stop_token_ids": (5, 6), "min_tokens": 1}, (), "by min_tokens=1"),
        ({"min_tokens": 1}, ((6,),), "by bad_words and min_tokens=1"),
        ({}, ((5,), (6,)), "by bad_words"),
    ],
)
def test_allowed_tokens_of_which_none_may_be_sampled_are_refused(
    params: dict[str, Any], bad_word_ids: tuple[tuple[int, ...], ...], words: str
) -> None:
    params = {"allowed_token_ids": (5, 6), **params}
    request = Request(
        id="a", prompt_ids=(1,), params=SamplingParams(**params), bad_word_ids=bad_word_ids
    )
    with pytest.raises(InvalidRequestError, match=words) as raised:
        request.check_allowed({5})
    assert raised.value.param == "allowed_token_ids"


def test_an_allowed_token_that_may_come_later_or_elsewhere_is_enough() -> None:
    params = SamplingParams(allowed_token_ids=(5, 6), stop_token_ids=(6,), min_tokens=1)
    request = Request(id="a", prompt_ids=(1,), params=params, bad_word_ids=((5, 5),))
    request.check_allowed({6})


@pytest.mark.parametrize("penalty", [1e-40, 1e-3, 0.0, 10.5])
def test_a_repetition_penalty_that_would_overflow_is_refused(penalty: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"repetition_penalty must be in \[0.01, 10\]"):
        SamplingParams(repetition_penalty=penalty)


@pytest.mark.parametrize("name", UNSERVED)
def test_what_vllm_has_and_this_has_not_is_refused_with_a_reason(name: str) -> None:
    fields: dict[str, Any] = {name: 1}
    with pytest.raises(InvalidRequestError, match=f"^{name} (is|are) .") as raised:
        SamplingParams(**fields)
    assert raised.value.param == name
