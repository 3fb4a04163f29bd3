"""Constraints on the answers to a chat, tested on texts with the grammar they give."""

import json
import random
from typing import Any

import jsonschema
import pytest

from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.chat import tool_parsers
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.parsing import parse
from jaxserve.frontend.tool_constraints import FIELD_NAMES, constrain
from jaxserve.server.chat.schema import ChatBody
from tests.chat.answers import form_of, found_in
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
        parsing = body.parser_config(world.model, prompt_ids)
    return constrain(body, parsing, asked, max_reasoning_tokens=body.thinking_token_budget)


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


@pytest.mark.parametrize("choice", ["required", ONLY_NOW])
def test_a_forced_call_comes_instead_of_an_answer_of_some_form(choice: Any) -> None:
    fields: dict[str, Any] = {"tools": [COUNT, NOW], "tool_choice": choice}
    asked = StructuredOutputsParams(json=NUMBER)
    assert bound(HERMES, asked=asked, **fields) == bound(HERMES, **fields)


# Each holds JSON of NUMBER, and no text beside it.
FORMS = [
    StructuredOutputsParams(json=NUMBER | {"additionalProperties": False}),
    StructuredOutputsParams(json_object=True),
    StructuredOutputsParams(regex=r'\{"n": [0-9]{1,3}\}'),
    StructuredOutputsParams(choice=('{"n": 1}', '{"n": 2}')),
]


@pytest.mark.parametrize("asked", FORMS, ids=lambda asked: asked.kind)
def test_a_model_that_may_call_calls_or_answers_in_the_form_that_was_asked_for(
    asked: StructuredOutputsParams,
) -> None:
    fields: dict[str, Any] = {"tools": [COUNT, NOW], "asked": asked}
    for thought in ("", "<think>hm</think>\n"):
        for text in (OWN, f"{OWN}\n{OWN}", '{"n": 1}'):
            assert allows(thought + text, QWEN3, **fields)
        for text in ("Hello", f"I count. {OWN}", f'{OWN}{{"n": 1}}', OWN.replace("count", "add")):
            assert not allows(thought + text, QWEN3, **fields)
    assert not allows(f"{OWN}\n{OWN}", QWEN3, parallel_tool_calls=False, **fields)
    assert not allows(OWN, QWEN3, tool_choice="none", **fields)
    assert allows('{"n": 1}', QWEN3, tool_choice="none", **fields)


def test_arguments_of_strict_functions_follow_their_schemas_beside_a_form() -> None:
    fields: dict[str, Any] = {"tools": [STRICT, NOW], "asked": FORMS[0]}
    assert allows(OWN, HERMES, **fields)
    assert not allows(OWN.replace("1", "true"), HERMES, **fields)
    assert allows(OWN.replace("count", "now"), HERMES, **fields)


@pytest.mark.parametrize("form", [HERMES, form_of("llama3_json")], ids=["hermes", "llama3_json"])
def test_tools_that_are_too_large_are_refused_by_their_name(form: AnswerFormat) -> None:
    names = {f"key{number:06}": {"type": "integer"} for number in range(9000)}
    function = {"name": "f", "parameters": {"type": "object", "properties": names}, "strict": True}
    tools = [{"type": "function", "function": function}]
    with pytest.raises(InvalidRequestError, match="must be at most 262144 bytes") as info:
        bound(form, tools=tools, asked=FORMS[0])
    assert info.value.param in FIELD_NAMES


LLAMA = form_of("llama3_json")
OTHER_TEXT = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/Text"}},
    "$defs": {"Text": {"type": "integer"}},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/Text"}, "of": {"$ref": "#"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"Text": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ('{"name": "count", "parameters": {"n": 1}}', True),
        ('{"name": "count", "parameters": {"n": true}}', False),
        ('{"name": "Ann"}', True),
        ('{"name": "count", "of": {"name": "Ann"}}', True),
        ('{"name": "count", "of": {"n": 1}}', False),
        ('{"name": 1}', False),
    ],
)
def test_calls_that_are_json_are_told_from_answers_that_are(text: str, is_good: bool) -> None:
    asked = StructuredOutputsParams(json=PERSON)
    function = {"name": "other", "parameters": OTHER_TEXT, "strict": True}
    for tools in ([STRICT], [STRICT, {"type": "function", "function": function}]):
        assert allows(text, LLAMA, tools=tools, asked=asked) is is_good


@pytest.mark.parametrize("name", tool_parsers.names())
def test_whatever_a_model_writes_is_calls_or_an_answer_of_the_form(name: str) -> None:
    form = form_of(name, "gpt_oss" if name == "gpt_oss" else None)
    schema = NUMBER | {"additionalProperties": False}
    asked = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    params = bound(form, tools=[STRICT, NOW], asked=asked)
    assert params is not None
    model, chance = Model(form.markers if name == "gpt_oss" else ()), random.Random(1)
    hints = ['{"n": 1}', *(form.tools.markers if form.tools else ())]
    kinds = set()
    for _ in range(30):
        text = model.writes(params, chance, hints=hints, max_tokens=300)
        if text is None:
            continue
        parser = AnswerParser(form, schemas={"count": NUMBER, "now": {}})
        found = found_in(parser.feed(text) + parser.finish())
        kinds.add(bool(found.calls))
        if found.calls:
            assert found.content == ""
            assert all(isinstance(json.loads(arguments), dict) for _, arguments in found.calls)
        else:
            jsonschema.validate(json.loads(found.content), schema)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ('<|channel|>final<|message|>{"n": 1}', True),
        (f'{THOUGHT}<|start|>assistant<|channel|>final<|message|>{{"n": 1}}', True),
        (f'{THOUGHT}{PREAMBLE}<|start|>assistant<|channel|>final<|message|>{{"n": 1}}', False),
        (f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>one", False),
        ('{"n": 1}', False),
    ],
)
def test_a_form_holds_for_the_final_message_of_harmony(text: str, is_good: bool) -> None:
    model = Model(HARMONY.markers)
    for tools in ([], [COUNT]):
        params = bound(HARMONY, tools=tools, asked=FORMS[0])
        assert params is not None
        assert model.accepts(params, text) is is_good
        assert model.accepts(params, f"{THOUGHT}<|start|>assistant{MESSAGE}") is bool(tools)


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
