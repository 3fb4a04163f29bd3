"""Outputs of offline generation: log-probabilities, and results of beam search."""

import math
from dataclasses import replace

import pytest

from jaxserve import LLM, BeamSearchParams, FlatLogprobs, SamplingParams
from jaxserve.errors import InvalidRequestError
from jaxserve.observability.metric_values import Counter, Histogram
from tests.data import checkpoint


def test_choices_and_their_logprobs_have_vllms_shape(llm: LLM) -> None:
    params = SamplingParams(n=2, max_tokens=4, seed=7, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate("Once upon a time", params)
    assert [choice.index for choice in output.outputs] == [0, 1]
    assert output.finished
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token_id, entry in zip(
        output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
    ):
        assert entry is not None
        assert token_id in entry
    for choice in output.outputs:
        assert choice.logprobs is not None
        for token_id, found in zip(choice.token_ids, choice.logprobs, strict=True):
            assert len(found) in {2, 3}  # two alternatives, and the chosen one if it is neither
            assert next(iter(found)) == token_id
            assert found[token_id].decoded_token == llm._tokenizer.token_text(token_id)


def test_a_beam_search_finds_an_answer_at_least_as_likely_as_the_greedy_one(llm: LLM) -> None:
    prompt = "Once upon a time"
    params = BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True)
    (output,) = llm.beam_search(prompt, params)
    greedy_params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    (greedy,) = llm.generate(prompt, greedy_params)
    best = output.sequences[0]
    assert len(output.sequences) == 4
    assert best.tokens[:-8] == greedy.prompt_token_ids
    assert greedy.outputs[0].cumulative_logprob is not None
    assert best.cum_logprob >= greedy.outputs[0].cumulative_logprob - 1e-4
    assert [each.cum_logprob for each in output.sequences] == sorted(
        (each.cum_logprob for each in output.sequences), reverse=True
    )


def test_the_log_probabilities_of_a_beam_are_those_of_its_prompt(llm: LLM) -> None:
    (output,) = llm.beam_search("One day", BeamSearchParams(beam_width=3, max_tokens=6))
    for beam in output.sequences:
        scored = llm.generate(
            {"prompt_token_ids": beam.tokens}, SamplingParams(max_tokens=1, prompt_logprobs=0)
        )[0].prompt_logprobs
        assert scored is not None
        answer = zip(beam.tokens[-6:], scored[-6:], strict=True)
        found = [entry[token].logprob for token, entry in answer if entry is not None]
        assert beam.cum_logprob == pytest.approx(sum(found), abs=1e-3)


def test_beams_of_several_prompts_are_those_of_each(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=5)
    prompts = ["Once upon a time", "A dog"]
    together = llm.beam_search(prompts, params, concurrency_limit=3)
    for prompt, output in zip(prompts, together, strict=True):
        (alone,) = llm.beam_search(prompt, params)
        assert [beam.tokens for beam in output.sequences] == [b.tokens for b in alone.sequences]


def test_a_beam_too_many_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="beam_width must be at most 10"):
        llm.beam_search("A dog", BeamSearchParams(beam_width=11, max_tokens=1))


def test_log_probabilities_of_tokens_named_are_those_of_the_model(llm: LLM) -> None:
    named = SamplingParams(temperature=0, max_tokens=3, logprob_token_ids=(300, 5))
    (by_id,) = llm.generate("One day", named)
    (top,) = llm.generate("One day", SamplingParams(temperature=0, max_tokens=3, logprobs=20))
    assert by_id.outputs[0].logprobs is not None
    assert top.outputs[0].logprobs is not None
    for entry, best in zip(by_id.outputs[0].logprobs, top.outputs[0].logprobs, strict=True):
        assert {300, 5} <= entry.keys() <= {300, 5} | {next(iter(best))}
        for token in entry.keys() & best.keys():
            assert entry[token].logprob == pytest.approx(best[token].logprob, abs=1e-5)
        assert min(entry[300].logprob, entry[5].logprob) <= min(b.logprob for b in best.values())


def test_the_whole_vocabulary_is_reported_where_the_operator_allows_it() -> None:
    wide = LLM(
        str(checkpoint("stories260K-hf")),
        max_num_seqs=2,
        max_num_batched_tokens=32,
        max_logprobs=-1,
        disable_log_stats=False,
    )
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=-1, prompt_logprobs=-1)
    (output,) = wide.generate("One day", params)
    assert output.outputs[0].logprobs is not None
    assert output.prompt_logprobs is not None
    for entry in (*output.outputs[0].logprobs, *output.prompt_logprobs[1:]):
        assert entry is not None
        assert len(entry) == wide.plan.model.vocab_size
        total = sum(math.exp(each.logprob) for each in entry.values())
        assert total == pytest.approx(1.0, abs=1e-4)
    values = {metric.name: metric for metric in wide.get_metrics()}
    generated = values["vllm:generation_tokens"]
    assert isinstance(generated, Counter)
    assert generated.value == 2
    lengths = values["vllm:request_generation_tokens"]
    assert isinstance(lengths, Histogram)
    assert (lengths.count, lengths.sum, lengths.buckets["+Inf"]) == (1, 2, 1)


def test_more_log_probabilities_than_the_operator_allows_are_refused(llm: LLM) -> None:
    for count in (-1, 21):
        with pytest.raises(InvalidRequestError, match=r"logprobs must be in \[0, 20\]"):
            llm.generate("One day", SamplingParams(logprobs=count))


def test_flat_log_probabilities_are_the_same_in_columns(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1)
    (plain,) = llm.generate("One day", params)
    (flat,) = llm.generate("One day", replace(params, flat_logprobs=True))
    columns, prompt = flat.outputs[0].logprobs, flat.prompt_logprobs
    assert isinstance(columns, FlatLogprobs)
    assert list(columns) == columns[:] == plain.outputs[0].logprobs
    assert columns.token_ids[columns.start_indices[1]] == flat.outputs[0].token_ids[1]
    assert prompt is not None
    assert [entry or None for entry in prompt] == plain.prompt_logprobs
