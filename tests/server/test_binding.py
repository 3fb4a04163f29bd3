"""What a chat's answer is bound to, tried on answers by the grammar that it comes to."""

from typing import Any

import pytest

from jaxserve.chat.parser import AnswerFormat
from jaxserve.errors import InvalidRequestError
from jaxserve.server.binding import bound_to
from jaxserve.server.protocol.chat import ChatBody
from jaxserve.server.protocol.parsing import parse
from jaxserve.server.reading import ChatReading
from jaxserve.structured_outputs import StructuredOutputsParams
from tests.chat.answers import form_of
from tests.grammar.world import Model, accepts
from tests.server.world import World

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
COUNT = {"type": "function", "function": {"name": "count", "parameters": NUMBER}}
STRICT = {"type": "function", "function": {"name": "count", "parameters": NUMBER, "strict": True}}
NOW = {"type": "function", "function": {"name": "now"}}
ONLY_NOW = {"type": "function", "function": {"name": "now"}}
CALL = '[{"name": "count", "arguments": {"n": 1}}]'
PLAIN, HERMES, QWEN3 = AnswerFormat(), form_of("hermes"), form_of("hermes", "qwen3")


def bound(
    form: AnswerFormat,
    *,
    prompt: str = "hi",
    asked: StructuredOutputsParams | None = None,
    **fields: Any,
) -> StructuredOutputsParams | None:
    body = parse({"messages": [{"role": "user", "content": "hi"}], **fields}, ChatBody)
    with World(answers=form) as world:
        prompt_ids = world.tokenizer.encode(prompt, add_special_tokens=False)
        reading = ChatReading.of(body, world.model, prompt_ids)
    return bound_to(body, reading, asked)


def allows(text: str, form: AnswerFormat = PLAIN, **fields: Any) -> bool:
    params = bound(form, **fields)
    assert params is not None
    return accepts(params, text)


def test_an_answer_is_free_where_nothing_is_asked() -> None:
    assert bound(QWEN3, tools=[COUNT]) is None


TWO = f"{CALL[:-1]}, {CALL[1:]}"
OWN = '<tool_call>\n{"name": "count", "arguments": {"n": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("choice", "text", "is_good"),
    [
        ("required", CALL, True),
        ("required", TWO, True),
        ("required", '[{"name": "now", "arguments": {}}]', True),
        ("required", '[{"name": "count", "arguments": {"n": "one"}}]', False),
        ("required", "[]", False),
        ("required", "Hello", False),
        (ONLY_NOW, '[{"name": "now", "arguments": {}}]', True),
        (ONLY_NOW, CALL, False),
    ],
)
def test_a_forced_call_is_one_of_the_tools(choice: Any, text: str, is_good: bool) -> None:
    assert allows(text, tools=[COUNT, NOW], tool_choice=choice) is is_good


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required", "parallel_tool_calls": False},
        {"tool_choice": {"type": "function", "function": {"name": "count"}}},
    ],
)
def test_no_more_than_one_call_is_forced_where_one_is_wanted(fields: dict[str, Any]) -> None:
    assert allows(CALL, tools=[COUNT], **fields)
    assert not allows(TWO, tools=[COUNT], **fields)


def test_a_call_is_forced_in_the_models_own_form() -> None:
    fields: dict[str, Any] = {"tools": [COUNT], "tool_choice": "required"}
    assert allows(OWN, HERMES, **fields)
    assert not allows(CALL, HERMES, **fields)


def test_a_call_that_the_models_form_cannot_hold_is_forced_as_json() -> None:
    either = {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": either}}
    text = '[{"name": "f", "arguments": {"a": 1}}]'
    assert allows(text, form_of("qwen3_coder"), tools=[tool], tool_choice="required")


@pytest.mark.parametrize(
    ("prompt", "text", "is_good"),
    [
        ("hi", OWN, True),
        ("hi", f"<think>hm</think>\n\n{OWN}", True),
        ("hi", "<think>hm</think>Hello", False),
        ("<think>\n", f"hm</think>{OWN}", True),
        ("<think>\n", OWN, False),
        ("<think></think>", OWN, True),
    ],
)
def test_reasoning_may_come_before_what_is_forced(prompt: str, text: str, is_good: bool) -> None:
    fields: dict[str, Any] = {"tools": [COUNT], "tool_choice": "required"}
    assert allows(text, QWEN3, prompt=prompt, **fields) is is_good


HARMONY = form_of("gpt_oss", "gpt_oss")
THOUGHT = "<|channel|>analysis<|message|>hm<|end|>"
PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>I count.<|end|>"
MESSAGE = '<|channel|>commentary to=functions.count <|constrain|>json<|message|>{"n": 1}'


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        (MESSAGE, True),
        (f"{THOUGHT}<|start|>assistant{MESSAGE}", True),
        (MESSAGE.replace("1", "true"), False),
        (f"{THOUGHT}<|start|>assistant{MESSAGE.replace('count', 'steal')}", False),
    ],
)
def test_a_message_of_harmony_calls(choice: str, text: str, is_good: bool) -> None:
    params = bound(HARMONY, tools=[STRICT], tool_choice=choice)
    assert params is not None
    assert Model(HARMONY.markers).accepts(params, text) is is_good


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>final<|message|>Cold.",
        f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>Cold.",
        f"{THOUGHT}{PREAMBLE}<|start|>assistant{MESSAGE}",
    ],
)
def test_harmony_leaves_a_model_free_that_need_not_call(text: str) -> None:
    params = bound(HARMONY, tools=[STRICT])
    assert params is not None
    assert Model(HARMONY.markers).accepts(params, text)


def test_a_schema_holds_for_what_follows_reasoning() -> None:
    asked = StructuredOutputsParams(json=NUMBER)
    assert allows('<think>hm</think>{"n": 1}', QWEN3, asked=asked)
    assert not allows("<think>hm</think>one", QWEN3, asked=asked)


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("Hello", True),
        ('I count.<tool_call>\n{"name": "count", "arguments": {"n": 1}}\n</tool_call>', True),
        ('I count.<tool_call>\n{"name": "count", "arguments": {"n": "1"}}\n</tool_call>', False),
    ],
)
def test_strict_tools_are_called_as_they_are_declared(text: str, is_good: bool) -> None:
    assert allows(text, HERMES, tools=[STRICT]) is is_good


def test_a_forced_call_cannot_have_another_form() -> None:
    with pytest.raises(InvalidRequestError, match="another form"):
        bound(
            PLAIN,
            tools=[COUNT],
            tool_choice="required",
            asked=StructuredOutputsParams(regex="a"),
        )


def test_a_budget_bounds_reasoning_and_leaves_the_answer_free() -> None:
    params = bound(QWEN3, thinking_token_budget=7)
    assert params is not None
    assert (params.reasoning_begin, params.reasoning_end) == ("<think>", "</think>")
    assert params.max_reasoning_tokens == 7


def test_a_budget_without_reasoning_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="where reasoning is parsed"):
        bound(HERMES, thinking_token_budget=7)


@pytest.mark.parametrize(
    ("form", "thought", "call"),
    [
        (form_of("hermes", "qwen3"), "<think>{}</think>", OWN),
        (HARMONY, "<|channel|>analysis<|message|>{}<|end|>", f"<|start|>assistant{MESSAGE}"),
        (form_of("mistral", "mistral"), "[THINK]{}[/THINK]", '[TOOL_CALLS]count[ARGS]{"n": 1}'),
        (
            form_of("glm", "glm"),
            "<think>{}</think>",
            "<tool_call>count\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        ),
    ],
    ids=["hermes", "gpt_oss", "mistral", "glm"],
)
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_budget_bounds_reasoning_before_calls_in_any_form(
    form: AnswerFormat, thought: str, call: str, choice: str
) -> None:
    params = bound(form, tools=[STRICT], tool_choice=choice, thinking_token_budget=3)
    assert params is not None
    model = Model(form.markers)
    assert model.accepts(params, thought.format("hm") + call)
    assert not model.accepts(params, thought.format("zqzq") + call)
    assert not model.accepts(params, thought.format("hm") + call.replace("1", "one"))
