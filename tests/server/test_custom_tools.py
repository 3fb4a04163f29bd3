"""Custom and hosted tools of chats: texts instead of arguments, and tools that are left out."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageCustomToolCall
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from tests.chat.answers import form_of
from tests.server.world import World, events

PATH = "/v1/chat/completions"
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
PATCH: dict[str, Any] = {
    "type": "custom",
    "custom": {
        "name": "patch",
        "description": "Change a file.",
        "format": {
            "type": "grammar",
            "grammar": {"syntax": "lark", "definition": 'start: "+" /[ab]{1,4}/ "\\n"'},
        },
    },
}
NOTE = {"type": "custom", "custom": {"name": "note", "format": {"type": "text"}}}
NOW = {"type": "function", "function": {"name": "now"}}
SEARCH = {"type": "web_search", "search_context_size": "low"}
TOOLS = [PATCH, NOTE, NOW, SEARCH]
SAYS = (
    '<tool_call>\n{"name": "note", "arguments": {"input": "a \\"b\\"\\n"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {"zone": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "note", "arguments": {"text": "x"}}\n</tool_call>'
)
CALLED = [
    {"type": "custom", "custom": {"name": "note", "input": 'a "b"\n'}},
    {"type": "function", "function": {"name": "now", "arguments": '{"zone": 1}'}},
    # Arguments that do not follow the schema are the text.
    {"type": "custom", "custom": {"name": "note", "input": '{"text": "x"}'}},
]


@pytest.fixture(scope="module")
def told() -> Iterator[TestClient]:
    """A model that calls a custom tool, a function and the custom tool again."""
    with World(says=SAYS, answers=form_of("hermes"), max_model_len=4096) as world:
        yield world.http()


@pytest.fixture(scope="module")
def free() -> Iterator[TestClient]:
    with World(answers=form_of("hermes"), max_model_len=4096) as world:
        yield world.http()


def ask(http: TestClient, **fields: Any) -> Any:
    answer = http.post(PATH, json={"messages": ASKED, "tools": TOOLS, "seed": 1, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def calls_of(http: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """The calls of a whole answer, which must be those that its stream adds up to."""
    whole: list[dict[str, Any]] = ask(http, **fields).json()["choices"][0]["message"]["tool_calls"]
    streamed: list[dict[str, Any]] = []
    for chunk in events(iter(ask(http, stream=True, **fields).text.splitlines())):
        for choice in () if chunk is None else chunk["choices"]:
            for delta in choice["delta"].get("tool_calls", ()):
                if "id" in delta:
                    assert delta["index"] == len(streamed)
                    streamed.append({key: delta[key] for key in delta if key != "index"})
                    continue
                kind = streamed[-1]["type"]
                assert set(delta) == {"index", kind}
                [(key, text)] = delta[kind].items()
                streamed[-1][kind][key] += text
    assert [unnumbered(call) for call in streamed] == [unnumbered(call) for call in whole]
    return whole


def unnumbered(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "id"}


def test_calls_of_custom_tools_have_texts(told: TestClient) -> None:
    assert [unnumbered(call) for call in calls_of(told)] == CALLED
    assert ask(told).json()["choices"][0]["finish_reason"] == "tool_calls"


def test_only_the_first_call_is_given_where_there_must_be_one(told: TestClient) -> None:
    assert [unnumbered(call) for call in calls_of(told, parallel_tool_calls=False)] == CALLED[:1]


@pytest.mark.parametrize("num_tokens", [1, 20, 45, 60])
def test_a_text_that_is_cut_is_as_much_as_came(told: TestClient, num_tokens: int) -> None:
    answer = ask(told, max_tokens=num_tokens).json()["choices"][0]
    assert answer["finish_reason"] == "length"
    if "tool_calls" in answer["message"]:
        [call, *_] = calls_of(told, max_tokens=num_tokens)
        assert 'a "b"\n'.startswith(call["custom"]["input"])


def test_openais_client_reads_the_calls(told: TestClient) -> None:
    client = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=told)
    tools: Any = TOOLS
    messages: Any = ASKED
    answer = client.chat.completions.create(model="tiny/model", messages=messages, tools=tools)
    call = (answer.choices[0].message.tool_calls or [])[0]
    assert isinstance(call, ChatCompletionMessageCustomToolCall)
    assert (call.custom.name, call.custom.input) == ("note", 'a "b"\n')


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "custom", "custom": {"name": "patch"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "custom", "custom": {"name": "patch"}}],
            },
        },
    ],
)
def test_a_custom_tool_that_is_forced_follows_its_grammar(
    free: TestClient, choice: dict[str, Any]
) -> None:
    calls = calls_of(free, tool_choice=choice, parallel_tool_calls=False)
    assert [call["custom"]["name"] for call in calls] == ["patch"]
    assert re.fullmatch(r"\+[ab]{1,4}\n", calls[0]["custom"]["input"])


def test_past_calls_are_read_as_calls_of_functions(free: TestClient) -> None:
    def prompt(call: dict[str, Any]) -> str:
        past = [
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c", **call}]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ]
        fields = {"messages": [*ASKED, *past], "max_tokens": 1, "return_prompt_text": True}
        text: str = ask(free, **fields).json()["prompt_text"]
        return text

    function = {"name": "patch", "arguments": '{"input":"+a\\n"}'}
    custom = {"name": "patch", "input": "+a\n"}
    assert prompt({"type": "custom", "custom": custom}) == prompt(
        {"type": "function", "function": function}
    )


def test_the_model_reads_of_custom_tools_and_not_of_hosted_ones(free: TestClient) -> None:
    prompt = ask(free, max_tokens=1, return_prompt_text=True).json()["prompt_text"]
    assert "The input follows this lark grammar" in prompt
    assert '"name": "note"' in prompt
    assert "web_search" not in prompt


def test_what_is_left_out_is_told_and_no_unknown_field() -> None:
    config = ServerConfig(port=0, strict_fields=True)
    with World(answers=form_of("hermes"), max_model_len=4096, config=config) as world:
        answer = ask(world.http(), web_search_options={}, max_tokens=1)
    assert answer.headers["x-jaxserve-ignored"].split(", ") == [
        "tools[].web_search",
        "web_search_options",
    ]


def test_a_grammar_that_constrains_nothing_is_told(free: TestClient) -> None:
    grammar = {"syntax": "lark", "definition": 'start: "(" start? ")"'}
    custom = {"name": "nest", "format": {"type": "grammar", "grammar": grammar}}
    answer = ask(free, tools=[{"type": "custom", "custom": custom}], max_tokens=1)
    assert answer.headers["x-jaxserve-ignored"] == "tools[].custom.format"


def test_hosted_tools_alone_cannot_be_required(free: TestClient) -> None:
    body = {"messages": ASKED, "tools": [SEARCH], "tool_choice": "required"}
    answer = free.post(PATH, json=body)
    assert answer.status_code == 400
    assert "if tools are given" in answer.json()["error"]["message"]
