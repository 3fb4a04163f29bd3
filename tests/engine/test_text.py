"""Events from batches: merged batches, and stop strings found late."""

from typing import Any

import pytest

from jaxserve.api.repetition_detection import RepetitionDetectionParams
from jaxserve.api.request import FinishReason, Request, RequestMetrics
from jaxserve.api.tokens import End, Start, TokenBatch
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.output_processor import OutputProcessor
from tests.engine.world import request, word_tokenizer
from tests.fakes import token_logprobs

TIMES = RequestMetrics(arrival_s=0.0)


class Ended:
    """An engine that records its calls."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, int, int]] = []
        self.reasons: list[FinishReason] = []
        self.aborted: list[str] = []

    def finish(self, request_id: str, index: int, *, num_tokens: int, reason: FinishReason) -> None:
        self.finished.append((request_id, index, num_tokens))
        self.reasons.append(reason)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


def opened(*requests: Request) -> tuple[OutputProcessor, Ended, list[int]]:
    engine = Ended()
    processor = OutputProcessor(word_tokenizer(), engine, clock=lambda: 9.0)
    return processor, engine, [processor.open(each) for each in requests]


def batch(key: int, *token_ids: int, end: FinishReason | None = None) -> TokenBatch:
    return TokenBatch(
        keys=[key] * len(token_ids),
        token_ids=list(token_ids),
        ends=[] if end is None else [End(key, end, TIMES)],
    )


def test_tokens_of_several_steps_make_one_event() -> None:
    processor, _, (key,) = opened(request("a", logprobs=0))
    whole = batch(key, 5)
    whole.logprobs[0] = token_logprobs(5)
    later = batch(key, 6, end=FinishReason.LENGTH)
    later.logprobs[0] = token_logprobs(6)
    whole.extend(later)
    (event,) = processor.feed(whole)
    assert (event.token_ids, event.text) == ((5, 6), "w5w6")
    assert event.logprobs == (token_logprobs(5), token_logprobs(6))
    assert event.finish_reason is FinishReason.LENGTH
    assert event.request_finished


def test_a_stop_token_at_the_end_of_several_steps_is_no_text() -> None:
    processor, _, (key,) = opened(request("a"))
    (event,) = processor.feed(batch(key, 5, 6, 7, end=FinishReason.STOP))
    assert (event.token_ids, event.text) == ((5, 6, 7), "w5w6")


def test_a_stop_string_ends_the_choice_here_and_tells_the_engine_how_much_counts() -> None:
    processor, engine, (key,) = opened(request("a", stop=("6",)))
    processor.feed(TokenBatch(starts=[Start(key, 2, 1.0, 3.0)]))
    (event,) = processor.feed(batch(key, 5, 6, 7, 8))
    assert (event.token_ids, event.text) == ((5, 6), "w5w")
    assert (event.finish_reason, event.stop_reason) == (FinishReason.STOP, "6")
    assert event.request_finished
    assert event.num_cached_tokens == 2
    assert event.metrics is not None
    assert (event.metrics.first_token_s, event.metrics.finished_s) == (3.0, 9.0)
    assert engine.finished == [("a", 0, 2)]


def test_what_the_engine_says_after_a_stop_string_is_ignored() -> None:
    processor, _, (key,) = opened(request("a", stop=("5",)))
    processor.feed(batch(key, 5))
    assert processor.feed(batch(key, 6)) == []
    assert processor.feed(batch(key, 7, end=FinishReason.LENGTH)) == []


def test_an_end_that_the_engine_knows_of_is_not_told_to_it() -> None:
    processor, engine, (key,) = opened(request("a", stop=("6",)))
    (event,) = processor.feed(batch(key, 5, 6, end=FinishReason.LENGTH))
    assert event.finish_reason is FinishReason.STOP
    assert engine.finished == []


def test_of_a_closed_request_nothing_is_said() -> None:
    processor, _, (first, second) = opened(request("a", n=2), request("b"))
    processor.close("a")
    assert processor.feed(batch(first + 1, 5)) == []
    assert len(processor.feed(batch(second, 5))) == 1
    assert processor.open(request("a")) > second


def test_a_failed_request_ends_each_choice_that_had_not_ended() -> None:
    processor, _, (key,) = opened(request("a", n=3))
    processor.feed(batch(key + 1, 5, end=FinishReason.LENGTH))
    events = processor.fail("a", "gone")
    assert [(event.index, event.error) for event in events] == [(0, "gone"), (2, "gone")]
    assert [event.request_finished for event in events] == [False, True]


def test_an_id_in_use_is_refused() -> None:
    processor, _, _ = opened(request("a"))
    with pytest.raises(InvalidRequestError, match="already in use"):
        processor.open(request("a"))


def stuck(**params: Any) -> Request:
    detection = RepetitionDetectionParams(max_pattern_size=2, min_count=3)
    return request("a", repetition_detection=detection, **params)


def test_a_choice_that_got_stuck_ends_here_and_the_engine_is_told_why() -> None:
    processor, engine, (key,) = opened(stuck())
    (event,) = processor.feed(batch(key, 9, 5, 6, 5, 6, 5, 6, 5, 6))
    assert event.token_ids == (9, 5, 6, 5, 6, 5, 6)
    assert event.text == "w9w5w6w5w6w5w6"
    assert (event.finish_reason, event.stop_reason) == (
        FinishReason.REPETITION,
        "repetition_detected",
    )
    assert engine.finished == [("a", 0, 7)]
    assert engine.reasons == [FinishReason.REPETITION]


def test_no_choice_counts_as_stuck_before_min_tokens() -> None:
    processor, _, (key,) = opened(stuck(min_tokens=5))
    assert processor.feed(batch(key, 5, 5, 5, 5))[0].finish_reason is None
    (event,) = processor.feed(batch(key, 5, 5))
    assert (event.finish_reason, event.token_ids) == (FinishReason.REPETITION, (5,))


def test_without_detokenizing_there_are_tokens_and_no_text() -> None:
    processor, _, (key,) = opened(request("a", detokenize=False))
    (event,) = processor.feed(batch(key, 5, 6, end=FinishReason.LENGTH))
    assert (event.token_ids, event.text) == ((5, 6), "")
