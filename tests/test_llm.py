import json
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from jaxserve import (
    LLM,
    BeamSearchParams,
    FlatLogprobs,
    RepetitionDetectionParams,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    TokenEvent,
)
from jaxserve.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
)
from jaxserve.metric_values import Counter, Histogram
from jaxserve.prompts import Prompt
from tests.data import checkpoint

NUM_SLOTS = 4
GREEDY = SamplingParams(temperature=0, max_tokens=12)
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %},{% endif %}"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    text = (checkpoint("stories260K-hf") / "golden.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)["cases"][0]
    return found


@pytest.fixture(scope="module")
def llm() -> LLM:
    # The queue is shorter than what the tests give at once.
    return LLM(
        str(checkpoint("stories260K-hf")),
        max_num_seqs=NUM_SLOTS,
        max_num_batched_tokens=64,
        max_queued_requests=3,
        scheduling_policy="priority",
    )


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


def assert_idle(llm: LLM) -> None:
    assert llm._engine.is_idle
    llm._engine.engine.engine.check_integrity()


def test_generate_continues_as_transformers_does(llm: LLM, golden: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, logprobs=0)
    (output,) = llm.generate(golden["prompt"], params)
    assert output.prompt_token_ids == golden["prompt_ids"]
    assert output.outputs[0].token_ids == golden["generated_ids"]
    assert golden["prompt"] + text_of(output) == golden["text"]
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    found = [
        entry[token].logprob for entry, token in zip(logprobs, golden["generated_ids"], strict=True)
    ]
    assert found == pytest.approx(golden["generated_logprobs"], abs=1e-3)
    assert output.outputs[0].cumulative_logprob == pytest.approx(sum(found))


def test_more_prompts_than_the_queue_holds_are_answered_in_their_order(llm: LLM) -> None:
    prompts = [f"There were {count} dogs" for count in range(3 * NUM_SLOTS)]
    together = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in together] == prompts
    alone = [text_of(llm.generate(prompt, GREEDY)[0]) for prompt in prompts]
    assert [text_of(output) for output in together] == alone
    assert_idle(llm)


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids,
        lambda ids: [ids],
        lambda ids: {"prompt_token_ids": ids},
        lambda ids: {"prompt": "Once upon a time", "cache_salt": "x"},
        lambda ids: ["Once upon a time"],
    ],
)
def test_a_prompt_may_be_given_in_many_forms(
    llm: LLM, golden: dict[str, Any], form: Callable[[list[int]], Prompt]
) -> None:
    (output,) = llm.generate(form(golden["prompt_ids"]), GREEDY)
    assert output.outputs[0].token_ids == golden["generated_ids"][: GREEDY.max_tokens]


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_lower_priority_numbers_run_first(llm: LLM) -> None:
    count = 3 * NUM_SLOTS
    outputs = llm.generate(["Tom"] * count, GREEDY, priority=range(count, 0, -1))
    starts = [output.metrics.scheduled_s for output in outputs if output.metrics is not None]
    assert starts == sorted(starts, key=lambda start: -(start or 0.0))


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


def test_a_prompt_seen_before_is_taken_from_the_cache_until_it_is_reset(llm: LLM) -> None:
    prompt = list(range(10, 60))
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens > 0
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def test_stream_yields_the_text_that_generate_returns(llm: LLM) -> None:
    events = list(llm.stream("Once upon a time", GREEDY))
    (output,) = llm.generate("Once upon a time", GREEDY)
    assert len(events) > 1
    assert "".join(event.text for event in events) == text_of(output)
    assert [event.request_finished for event in events] == [False] * (len(events) - 1) + [True]


def test_streams_may_be_open_at_once(llm: LLM) -> None:
    prompts = ["Once upon a time", "The dog"]
    streams = [llm.stream(prompt, GREEDY) for prompt in prompts]
    texts = ["", ""]
    for pair in zip(*streams, strict=True):
        texts = [text + event.text for text, event in zip(texts, pair, strict=True)]
    assert texts == [text_of(output) for output in llm.generate(prompts, GREEDY)]
    assert_idle(llm)


def test_closing_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=200))
    next(stream)
    assert llm.stats().num_running == 1
    stream.close()
    assert llm.stats().num_running == 0
    assert_idle(llm)


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        (["a", 5], InvalidRequestError),
        (["a", {"text": "a"}], InvalidRequestError),
        (["a", {"prompt": 5}], InvalidRequestError),
        (["a", "\ud800"], InvalidRequestError),
        (["a", [1, 512]], InvalidRequestError),
        (["a", [1, -1]], InvalidRequestError),
        (["a", [1, 0.5]], InvalidRequestError),
        (["a", []], InvalidRequestError),
        (["a", [1] * 512], ContextLengthError),
        (["a", "b" * 100_000], ContextLengthError),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm._engine.engine, "add", None)
    with pytest.raises(error) as caught:
        llm.generate(prompts, GREEDY)
    assert caught.value.__notes__ == ["in prompt 1 of 2, counted from 0"]


@pytest.mark.parametrize("prompt", [None, 5, 0.5, {"a", "b"}])
def test_what_is_no_prompt_at_all_is_refused(llm: LLM, prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a prompt must be a text, token ids"):
        llm.generate(prompt, GREEDY)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("sampling_params", [GREEDY]),
        ("sampling_params", [GREEDY, {"temperature": 0}]),
        ("sampling_params", {"temperature": 0}),
        ("priority", [1]),
        ("priority", ["high", "low"]),
    ],
)
def test_what_is_given_for_each_prompt_must_fit_the_prompts(
    llm: LLM, keyword: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=keyword):
        llm.generate(["a", "b"], **{keyword: value})


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_defaults_come_from_the_model_and_leave_room_for_them(llm: LLM) -> None:
    assert llm.get_default_sampling_params() == SamplingParams()
    (output,) = llm.generate([3] * 510)
    assert len(output.outputs[0].token_ids) <= 2


def test_chat_renders_the_template_and_may_fill_the_context(llm: LLM) -> None:
    messages = [
        {"role": "system", "content": "Once upon a time"},
        {"role": "user", "content": "there was a dog"},
    ]
    (output,) = llm.chat(messages, chat_template=TEMPLATE)
    assert output.prompt == "Once upon a time there was a dog,"
    assert len(output.outputs[0].token_ids) > (SamplingParams().max_tokens or 0)


def test_several_conversations_are_answered_at_once(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": name}] for name in ("Tom", "Lily")]
    outputs = llm.chat(conversations, GREEDY, chat_template=TEMPLATE, add_generation_prompt=False)
    assert [output.prompt for output in outputs] == ["Tom", "Lily"]


def test_a_conversation_can_be_streamed(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Once upon a time"}]
    events = list(llm.stream(messages, GREEDY, chat_template=TEMPLATE))
    (output,) = llm.chat(messages, GREEDY, chat_template=TEMPLATE)
    assert "".join(event.text for event in events) == text_of(output)


def test_chat_without_a_template_says_so(llm: LLM) -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hi"}], GREEDY)


def test_a_message_is_checked_as_the_server_checks_it(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.role"):
        llm.chat([{"role": "wizard", "content": "hi"}], GREEDY, chat_template=TEMPLATE)


def test_an_unknown_option_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(
        ConfigError, match="gpu_memory_utilisation: did you mean gpu_memory_utilization"
    ):
        LLM("anything", gpu_memory_utilisation=0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("gpu_memory_utilization", "half"), ("max_model_len", "8k"), ("block_size", 0), ("seed", "x")],
)
def test_a_bad_option_is_named_as_the_user_named_it(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be .*, got {value!r}"):
        LLM("anything", **{option: value})


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Ctrl-C as in a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_step(llm: LLM, monkeypatch: pytest.MonkeyPatch, *, at: int) -> list[list[TokenEvent]]:
    """Send Ctrl-C at the beginning of a step; return the list of what the steps returned."""
    step, finished = llm._engine.engine.step, list[list[TokenEvent]]()

    def interrupted_step() -> list[TokenEvent]:
        if len(finished) == at:
            signal.raise_signal(signal.SIGINT)
        finished.append(step())
        return finished[-1]

    monkeypatch.setattr(llm._engine.engine, "step", interrupted_step)
    return finished


@pytest.mark.usefixtures("default_interrupt")
def test_an_interrupt_waits_for_the_step_and_leaves_the_llm_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        finished = interrupt_step(llm, patch, at=3)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Once upon a time"] * 6, SamplingParams(max_tokens=100))
    assert len(finished) > 3
    assert_idle(llm)
    assert len(llm.generate("Tom", GREEDY)[0].outputs[0].token_ids) == GREEDY.max_tokens


def test_a_failed_engine_says_so_and_takes_nothing_more(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[TokenEvent]:
        raise RuntimeError("device lost")

    # All of it is undone in the end, for the tests that share the engine.
    monkeypatch.setattr(llm._engine, "_is_dead", False)
    monkeypatch.setattr(llm._engine.engine, "step", fail)
    with pytest.raises(EngineDeadError) as caught:
        llm.generate("Tom", GREEDY)
    assert str(caught.value.__cause__) == "device lost"
    with pytest.raises(EngineDeadError):
        llm.generate("Tom", GREEDY)


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


def test_what_is_enqueued_is_answered_when_waited_for(llm: LLM) -> None:
    ids = llm.enqueue(["One day", "A cat"], GREEDY) + llm.enqueue("The end", GREEDY)
    outputs = llm.wait_for_completion()
    assert [output.request_id for output in outputs] == ids
    expected = llm.generate(["One day", "A cat", "The end"], GREEDY)
    assert [text_of(output) for output in outputs] == [text_of(output) for output in expected]
    assert llm.wait_for_completion() == []


def test_an_answer_that_got_stuck_is_ended(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=100,
        allowed_token_ids=(300,),
        repetition_detection=RepetitionDetectionParams(max_pattern_size=4, min_count=5),
    )
    (output,) = llm.generate("One day", params)
    assert output.outputs[0].token_ids == [300] * 5
    assert output.outputs[0].finish_reason == "repetition"
    assert_idle(llm)


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


def test_metrics_must_be_asked_for(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="disable_log_stats=False"):
        llm.get_metrics()


def test_a_prompt_is_computed_whole_where_the_cache_is_not_to_be_read(llm: LLM) -> None:
    prompt = list(range(100, 150))
    fresh = replace(GREEDY, skip_reading_prefix_cache=True)
    llm.generate(prompt, GREEDY)
    assert llm.generate(prompt, fresh)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens > 0


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


def test_a_stream_tells_what_is_new_or_all_so_far_or_all_at_the_end(llm: LLM) -> None:
    def texts(kind: RequestOutputKind) -> list[str]:
        params = replace(GREEDY, output_kind=kind)
        return [event.text for event in llm.stream("One day", params)]

    new = texts(RequestOutputKind.DELTA)
    assert texts(RequestOutputKind.CUMULATIVE) == ["".join(new[: i + 1]) for i in range(len(new))]
    assert texts(RequestOutputKind.FINAL_ONLY) == ["".join(new)]
