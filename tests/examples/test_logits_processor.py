"""The example of a logits processor does what it says, inside a real engine."""

import pytest

from examples.logits_processor import TopNSigma
from jaxserve import LLM, SamplingParams
from jaxserve.errors import InvalidRequestError
from tests.data import checkpoint

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        str(checkpoint("stories260K-hf")),
        max_num_seqs=4,
        max_num_batched_tokens=64,
        logits_processors=[TopNSigma],
    )


def test_none_but_the_most_likely_token_is_within_no_deviation(llm: LLM) -> None:
    hot = SamplingParams(temperature=5.0, seed=1, max_tokens=20, extra_args={"top_n_sigma": 0.0})
    greedy = SamplingParams(temperature=0, max_tokens=20)
    without = SamplingParams(temperature=5.0, seed=1, max_tokens=20)
    first, second, third = llm.generate([PROMPT] * 3, [hot, greedy, without])
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert third.outputs[0].token_ids != second.outputs[0].token_ids


def test_an_argument_that_is_no_number_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="top_n_sigma must be a finite number"):
        llm.generate(PROMPT, SamplingParams(extra_args={"top_n_sigma": "much"}))
    assert llm._engine.is_idle
