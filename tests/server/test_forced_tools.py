"""Answers that are forced: calls with valid arguments, response formats, and reasoning budgets."""

import json
from typing import Any, NamedTuple

import jsonschema
import pytest
from starlette.testclient import TestClient

from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.reasoning_format import ReasoningFormat
from tests.chat.answers import form_of
from tests.server.tools import ASK, LENGTH, NOW, ask, deltas, refused
from tests.server.world import World, events

STRICT_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "boolean"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("stream_it", [False, True])
@pytest.mark.parametrize(
    ("choice", "answers"),
    [
        ("required", AnswerFormat()),
        ({"type": "function", "function": {"name": "weather"}}, form_of("hermes")),
        ("required", form_of("qwen3_coder")),
    ],
)
def test_a_call_is_forced_with_the_arguments_that_its_schema_wants(
    choice: Any, answers: AnswerFormat, stream_it: bool
) -> None:
    body = {"tools": [STRICT_WEATHER], "tool_choice": choice, "seed": 3, "max_tokens": 1000}
    body["parallel_tool_calls"] = False
    with World(answers=answers, max_model_len=LENGTH) as it, it.http() as http:
        if stream_it:
            found = deltas(http, **body)
            calls = [call for c in found for call in c["delta"].get("tool_calls", ())]
            arguments = "".join(c["function"]["arguments"] for c in calls if c["index"] == 0)
            reason = found[-1]["finish_reason"]
        else:
            choice = ask(http, **body)["choices"][0]
            assert choice["message"]["content"] is None
            arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
            reason = choice["finish_reason"]
    jsonschema.validate(
        json.loads(arguments),
        STRICT_WEATHER["function"]["parameters"],  # type: ignore[index]
    )
    assert reason == "tool_calls"


def test_parallel_calls_that_are_not_wanted_are_not_forced() -> None:
    body = {"tools": [STRICT_WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    with World(max_model_len=LENGTH) as it, it.http() as http:
        choice = ask(http, **body, seed=5, max_tokens=200)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_schema_that_no_grammar_can_follow_is_refused_if_it_is_strict() -> None:
    function = {"name": "f", "parameters": {"type": "object", "not": {"type": "object"}}}
    tools = [{"type": "function", "function": {**function, "strict": True}}]
    with World(max_model_len=LENGTH) as it:
        error = refused(it.http(), tools=tools, tool_choice="required")
        tools[0]["function"] = function
        ask(it.http(), tools=tools, tool_choice="required", max_tokens=60)
    assert error["param"] == "tools"
    assert "not" in error["message"]


def test_reasoning_ends_when_its_budget_is_used_up() -> None:
    template = "{{ messages[0].content }}<|im_start|>"
    reasoning = ReasoningFormat(begins=("<|im_start|>",), ends=("<|im_end|>",))
    with World(
        answers=AnswerFormat(reasoning=reasoning), template=template, max_model_len=LENGTH
    ) as it:
        answer = ask(it.http(), tools=[], thinking_token_budget=9, seed=1, max_tokens=40)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 9
    assert answer["usage"]["completion_tokens"] > 10
    assert answer["choices"][0]["message"]["reasoning"]


ENVELOPE = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
STRICT_FUNCTION: dict[str, Any] = {**STRICT_WEATHER["function"], "strict": True}  # type: ignore[dict-item]
# Tokens of the world's stand around reasoning, so that its random model ends it.
THINKING = AnswerFormat(
    reasoning=ReasoningFormat(begins=("<|im_start|>",), ends=("<|im_end|>",)),
    tools=form_of("hermes").tools,
)
OPENED = "{{ messages[0].content }}{% if tools %}.{% endif %}<|im_start|>"


class Said(NamedTuple):
    """Contents of an answer on any endpoint."""

    text: str
    calls: list[Any]
    thought: str


def said_in_chat(http: TestClient, seed: int, *, forced: bool, streams: bool) -> Said:
    body: dict[str, Any] = {
        "tools": [{"type": "function", "function": STRICT_FUNCTION}],
        "tool_choice": "required" if forced else "auto",
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": ENVELOPE},
        },
        "seed": seed,
        "max_tokens": LENGTH // 2,
    }
    if not streams:
        message = ask(http, **body)["choices"][0]["message"]
        calls = [c["function"]["arguments"] for c in message.get("tool_calls") or ()]
        return Said(message["content"] or "", calls, message.get("reasoning") or "")
    parts = [choice["delta"] for choice in deltas(http, **body)]
    pieces = [call for part in parts for call in part.get("tool_calls") or ()]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    return Said(
        "".join(part.get("content") or "" for part in parts),
        [arguments] if pieces else [],
        "".join(part.get("reasoning") or "" for part in parts),
    )


def said_in_response(http: TestClient, seed: int, *, forced: bool, streams: bool) -> Said:
    body = {
        "input": ASK,
        "tools": [{"type": "function", **STRICT_FUNCTION}],
        "tool_choice": "required" if forced else "auto",
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": ENVELOPE}},
        "seed": seed,
        "max_output_tokens": LENGTH // 2,
    }
    if streams:
        with http.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
            answer = events(response.iter_lines())[-1]["response"]
    else:
        answer = http.post("/v1/responses", json=body).json()
    texts = {"message": "", "reasoning": ""}
    calls = []
    for item in answer["output"]:
        if item["type"] == "function_call":
            calls.append(item["arguments"])
        else:
            texts[item["type"]] += item["content"][0]["text"]
    return Said(texts["message"], calls, texts["reasoning"])


def said_in_message(http: TestClient, seed: int, *, forced: bool, streams: bool) -> Said:
    form = {"type": "json_schema", "schema": ENVELOPE}
    tool = {"name": "weather", "input_schema": STRICT_FUNCTION["parameters"], "strict": True}
    body = {
        "model": World.name,
        "messages": ASK,
        "tools": [tool],
        "tool_choice": {
            "type": "any" if forced else "auto",
            "disable_parallel_tool_use": True,
        },
        # Both names that Anthropic has had for it.
        **({"output_config": {"format": form}} if streams else {"output_format": form}),
        "seed": seed,
        "max_tokens": LENGTH // 2,
    }
    if not streams:
        blocks = http.post("/v1/messages", json=body).json()["content"]
        calls = [json.dumps(block["input"]) for block in blocks if block["type"] == "tool_use"]
        texts = ["".join(b.get(k, "") for b in blocks) for k in ("text", "thinking")]
        return Said(texts[0], calls, texts[1])
    with http.stream("POST", "/v1/messages", json={**body, "stream": True}) as response:
        found = [event for event in events(response.iter_lines()) if event is not None]
    parts = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    joined = ["".join(p.get(k, "") for p in parts) for k in ("text", "partial_json", "thinking")]
    return Said(joined[0], [joined[1]] if joined[1] else [], joined[2])


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("say", [said_in_chat, said_in_response, said_in_message])
def test_an_answer_with_tools_and_a_form_is_a_call_or_has_the_form(say: Any, streams: bool) -> None:
    """The world's model writes at random what it may, so in a few answers it does both."""
    kinds = set()
    with World(answers=form_of("hermes"), max_model_len=LENGTH) as it, it.http() as http:
        for seed in range(8):
            kinds.add(kind_of(say(http, seed, forced=False, streams=streams)))
        assert kinds == {"call", "text"}
        assert kind_of(say(http, 1, forced=True, streams=streams)) == "call"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("say", [said_in_chat, said_in_response, said_in_message])
@pytest.mark.parametrize("forced", [False, True])
def test_a_form_begins_where_reasoning_ends(say: Any, forced: bool, streams: bool) -> None:
    with (
        World(answers=THINKING, template=OPENED, max_model_len=2 * LENGTH) as it,
        it.http() as http,
    ):
        said = say(http, 3, forced=forced, streams=streams)
    assert said.thought
    assert kind_of(said) == "call" or not forced


def kind_of(said: Said) -> str:
    """Whether an answer calls or says something; it is as it should be."""
    if said.calls:
        assert said.text == ""
        for arguments in said.calls:
            jsonschema.validate(json.loads(arguments), STRICT_FUNCTION["parameters"])
        return "call"
    jsonschema.validate(json.loads(said.text), ENVELOPE)
    return "text"


def test_a_tool_that_no_grammar_can_follow_is_not_blamed_on_the_form() -> None:
    function = {"name": "f", "parameters": {"not": {"type": "object"}}, "strict": True}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": ENVELOPE}}
    with World(answers=form_of("hermes"), max_model_len=LENGTH) as it:
        tools = [{"type": "function", "function": function}]
        for asked in (form, {"type": "json_object"}):
            assert refused(it.http(), tools=tools, response_format=asked)["param"] == "tools"
        bad = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}
        error = refused(it.http(), tools=[NOW], response_format=bad)
        assert error["param"] == "response_format"
