import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from jaxserve import LLM, BeamSearchParams, RepetitionDetectionParams, SamplingParams
from jaxserve.errors import CheckpointError, ConfigError, ContextLengthError, InvalidRequestError
from jaxserve.offline.prompts import Prompt
from tests.data import checkpoint
from tests.offline import GREEDY, assert_idle, text_of

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %},{% endif %}"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    text = (checkpoint("stories260K-hf") / "golden.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)["cases"][0]
    return found


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


def test_a_prompt_seen_before_is_taken_from_the_cache_until_it_is_reset(llm: LLM) -> None:
    prompt = list(range(10, 60))
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens > 0
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


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


def test_an_answer_that_reaches_the_context_ends_alone(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, min_tokens=20, ignore_eos=True)
    prompts: list[Prompt] = ["Once upon a time", [3] * 505, [3] * 511]
    outputs = llm.generate(prompts, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [20, 7, 1]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    llm.enqueue(prompts, params)
    again = llm.wait_for_completion()
    assert [each.outputs[0].token_ids for each in again] == [
        each.outputs[0].token_ids for each in outputs
    ]


def test_a_chat_and_a_stream_that_reach_the_context_end_there(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)
    conversation = [{"role": "user", "content": "Once upon a time " * 20}]
    (output,) = llm.chat(conversation, params, chat_template=TEMPLATE)
    assert output.prompt_token_ids is not None
    num_tokens = len(output.prompt_token_ids) + len(output.outputs[0].token_ids)
    assert (num_tokens, output.outputs[0].finish_reason) == (512, "length")
    *_, last = llm.stream([3] * 500, params)
    assert last.finish_reason == "length"


def test_beams_that_reach_the_context_end_there(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=20, ignore_eos=True)
    prompts: list[Prompt] = [[3] * 10, [3] * 508]
    found = llm.beam_search(prompts, params)
    lengths = [
        len(sequence.tokens) - len(prompt)
        for output, prompt in zip(found, (range(10), range(508)), strict=True)
        for sequence in output.sequences
    ]
    assert lengths == [20, 20, 4, 4]


def test_a_chat_gives_its_template_contents_in_the_requested_form(llm: LLM) -> None:
    template = "{{ messages[0].content if messages[0].content is string else 'parts' }}"
    chat = partial(llm.chat, [{"role": "user", "content": "once"}], GREEDY, chat_template=template)
    for content_format, expected in (("auto", "once"), ("string", "once"), ("openai", "parts")):
        (output,) = chat(chat_template_content_format=content_format)
        assert output.prompt == expected
    with pytest.raises(InvalidRequestError, match="chat_template_content_format must be one of"):
        chat(chat_template_content_format="parts")


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
        llm.chat([{"role": "a wizard", "content": "hi"}], GREEDY, chat_template=TEMPLATE)


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


def test_metrics_must_be_asked_for(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="disable_log_stats=False"):
        llm.get_metrics()


def test_a_prompt_is_computed_whole_where_the_cache_is_not_to_be_read(llm: LLM) -> None:
    prompt = list(range(100, 150))
    fresh = replace(GREEDY, skip_reading_prefix_cache=True)
    llm.generate(prompt, GREEDY)
    assert llm.generate(prompt, fresh)[0].num_cached_tokens == 0
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens > 0
