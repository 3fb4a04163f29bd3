"""/v1/responses: items become chats, and the chats' answers items."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from starlette.testclient import TestClient

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.chat.pieces import Arguments, Call, End, Piece, Reasoning, Text
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.errors import GenerationError
from jaxserve.server.responses.answers import Response
from jaxserve.server.responses.items import ITEMS
from jaxserve.server.responses.schema import ResponsesBody
from jaxserve.server.responses.tools import targets
from jaxserve.server.responses.writer import ResponseWriter
from jaxserve.server.schema.answers import PromptTokensDetails, Usage
from tests.chat.answers import form_of
from tests.data import needs_data
from tests.server.response_calls import BODY, PATH, stream
from tests.server.test_openai_spec import check
from tests.server.world import World

EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.failed": "ResponseFailedEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.reasoning_text.delta": "ResponseReasoningTextDeltaEvent",
    "response.reasoning_text.done": "ResponseReasoningTextDoneEvent",
    "response.custom_tool_call_input.delta": "ResponseCustomToolCallInputDeltaEvent",
    "response.custom_tool_call_input.done": "ResponseCustomToolCallInputDoneEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
}


def parse_body(**fields: Any) -> ResponsesBody:
    return parse({**BODY, **fields}, ResponsesBody)


def chat_of(earlier: Sequence[dict[str, Any]] = (), **fields: Any) -> dict[str, Any]:
    return parse_body(**fields).chat(ITEMS.validate_python(list(earlier)))


class Told:
    """An answer whose pieces are known; the model that gives them may not exist."""

    params = SamplingParams()
    model = "m"
    reasoning_tokens = 2

    def __init__(self, steps: Sequence[list[Piece]], failure: Exception | None = None) -> None:
        self._steps = steps
        self._failure = failure
        self.usage = Usage(10, 7, 17, PromptTokensDetails(4))

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        for step in self._steps:
            yield step
        if self._failure is not None:
            raise self._failure


TOLD: list[list[Piece]] = [
    [],
    [Reasoning("Let me")],
    [Reasoning(" see."), Text("I look ")],
    [Text("it up.")],
    [Call("call_1", "find"), Arguments('{"what": ')],
    [Arguments('"fox"}'), Call("call_2", "find"), Arguments("{}")],
    [End("tool_calls", None)],
]


def tell(
    steps: Sequence[list[Piece]],
    failure: Exception | None = None,
    *,
    tools: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The response that an answer becomes, and the events of its stream."""
    begun = Response(
        id="resp_1",
        created_at=1,
        background=False,
        instructions=None,
        max_output_tokens=None,
        max_tool_calls=None,
        metadata={},
        model="m",
        parallel_tool_calls=True,
        previous_response_id=None,
        prompt_cache_key=None,
        reasoning={"effort": None, "summary": None},
        safety_identifier=None,
        store=True,
        temperature=1.0,
        text={"format": {"type": "text"}},
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=1.0,
        user=None,
    )
    called = targets(parse_body(tools=[*tools]).tools)
    writer = ResponseWriter(Told(steps, failure), begun, called)  # type: ignore[arg-type]

    async def read() -> list[dict[str, Any]]:
        return [
            msgspec.json.decode(msgspec.json.encode(event))
            async for events in writer.events()
            for event in events
        ]

    events = anyio.run(read)
    return msgspec.to_builtins(writer.response), events


def test_the_text_is_that_of_the_same_chat(http: TestClient) -> None:
    response = http.post(PATH, json=BODY).json()
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1}
    chat = http.post("/v1/chat/completions", json=body).json()
    [message] = response["output"]
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert response["usage"]["total_tokens"] == chat["usage"]["total_tokens"]


def test_an_answer_cut_off_is_incomplete(http: TestClient) -> None:
    response = http.post(PATH, json=BODY).json()
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_what_the_assistant_thinks_says_and_calls_is_one_message() -> None:
    chat = chat_of(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Let me see."}]},
            {"role": "assistant", "content": "I look"},
            {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "brown"},
        ],
    )
    function = {"name": "find", "arguments": "{}"}
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {
            "role": "assistant",
            "content": "I look",
            "reasoning": "Let me see.",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "brown"}]},
    ]


TOOLS: Any = [{"type": "function", "name": name, "parameters": {}} for name in ("f", "g")]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choices_are_the_chats(choice: Any, expected: object) -> None:
    assert chat_of(tools=TOOLS, tool_choice=choice)["tool_choice"] == expected


def test_allowed_tools_are_the_chats_own() -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "g"}],
    }
    chat = chat_of(tools=TOOLS, tool_choice=allowed)
    tools = [{"type": "function", "function": {"name": "g"}}]
    wanted = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    assert chat["tool_choice"] == wanted


def test_a_text_format_is_the_chats_response_format() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    chat = chat_of(text={"format": form})
    del form["type"]
    assert chat["response_format"] == {"type": "json_schema", "json_schema": form}


def test_an_answers_items_are_items_of_a_request() -> None:
    response, _ = tell(TOLD)
    assert len(ITEMS.validate_python(response["output"])) == 4


def test_errors_speak_of_a_responses_fields(http: TestClient) -> None:
    error = http.post(PATH, json={**BODY, "max_output_tokens": 5000}).json()["error"]
    assert error["param"] == "max_output_tokens"
    assert "max_output_tokens=5000" in error["message"]


def test_input_tokens_are_counted(http: TestClient) -> None:
    counted = http.post(f"{PATH}/input_tokens", json={"input": "hello"}).json()
    usage = http.post(PATH, json=BODY).json()["usage"]
    assert counted["input_tokens"] == usage["input_tokens"]


def test_logprobs_stand_beside_the_text(http: TestClient) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [message] = http.post(PATH, json={**BODY, **fields}).json()["output"]
    assert len(message["content"][0]["logprobs"]) == 8


def test_reasoning_tokens_are_counted() -> None:
    says = "<think>\nNorth.\n</think>\n\nYes."
    with World(says=says, answers=form_of("hermes", "qwen3"), max_model_len=512) as world:
        usage = world.http().post(PATH, json={"input": "hello"}).json()["usage"]
        inside = world.tokenizer.encode("\nNorth.\n", add_special_tokens=False)
    assert usage["output_tokens_details"] == {"reasoning_tokens": len(inside)}
    assert usage["output_tokens"] > len(inside)


def test_a_response_says_what_was_in_force() -> None:
    sent = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 5,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "store": False,
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "top_p": 0.25,
        "user": "me",
    }
    with World(defaults=GenerationDefaults(temperature=0.5, top_p=0.75)) as world:
        answer = world.http().post(PATH, json={"input": "hello", **sent}).json()
        plain = world.http().post(PATH, json=BODY).json()
    assert {name: answer[name] for name in sent} == sent
    assert (answer["temperature"], plain["temperature"]) == (0.5, 0.5)
    assert plain["top_p"] == 0.75
    assert plain["text"] == {"format": {"type": "text"}}
    assert plain["tool_choice"] == "auto"


def test_events_come_in_openais_order(http: TestClient) -> None:
    events = stream(http)
    types = [event["type"].removeprefix("response.") for event in events]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(types[4:-4]) == {"output_text.delta"}
    assert types[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_streams_deltas_add_up_to_its_response(http: TestClient) -> None:
    events = stream(http)
    text = "".join(event["delta"] for event in events if "delta" in event)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text


def test_pieces_become_items() -> None:
    response, events = tell(TOLD)
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response["output"][0]["content"][0]["text"] == "Let me see."
    assert response["output"][1]["content"][0]["text"] == "I look it up."
    assert response["output"][2]["arguments"] == '{"what": "fox"}'
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert events[0]["response"]["usage"] is None
    assert events[-1]["response"] == response
    added = [event["item"]["id"] for event in events if event["type"].endswith("item.added")]
    assert added == [item["id"] for item in response["output"]]


def test_an_error_in_the_middle_is_a_failed_response() -> None:
    response, events = tell([[Text("Once")]], GenerationError("logits"))
    assert events[-1]["type"] == "response.failed"
    assert response["status"] == "failed"
    assert "logits" not in response["error"]["message"]


@needs_data
def test_every_event_is_openais(http: TestClient) -> None:
    for event in [*stream(http), *tell(TOLD)[1], *tell([[Text("a")]], GenerationError("x"))[1]]:
        check(event, EVENTS[event["type"]])


@needs_data
def test_a_response_and_its_input_are_openais(http: TestClient) -> None:
    response = http.post(PATH, json=BODY).json()
    check(response, "Response")
    check(http.get(f"{PATH}/{response['id']}").json(), "Response")
    check(http.get(f"{PATH}/{response['id']}/input_items").json(), "ResponseItemList")


def test_vllms_parameters_reach_the_engine_as_from_a_chat() -> None:
    shared: dict[str, Any] = {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "min_p": 0.1,
        "top_k": 5,
        "seed": 3,
        "stop": "END",
        "stop_token_ids": [7],
        "ignore_eos": True,
        "min_tokens": 2,
        "logit_bias": {"5": -3.5},
        "allowed_token_ids": [5, 6],
        "bad_words": ["fox"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "repetition_detection": {"max_pattern_size": 8, "min_count": 4},
        "vllm_xargs": {"own": [1, 2]},
        "structured_outputs": {"regex": "a+"},
        "priority": 4,
        "cache_salt": "salt",
    }
    of_chat = parse({"messages": [{"role": "user", "content": "a"}], **shared}, ChatBody)
    of_response = parse(chat_of(**{**shared, "max_output_tokens": None}), ChatBody)
    defaults = GenerationDefaults()
    assert of_response.params(defaults) == of_chat.params(defaults)
    assert (of_response.priority, of_response.cache_salt) == (4, "salt")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"min_tokens": 9}, "min_tokens", "max_output_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0.01"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "no field"),
        (
            {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}},
            "structured_outputs",
            "cannot be given with text.format",
        ),
        ({"n": 2}, "n", "a response is one answer"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"kv_transfer_params": {}}, "kv_transfer_params", "not supported"),
    ],
)
def test_vllms_parameters_are_refused_by_the_names_of_a_response(
    http: TestClient, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = http.post(PATH, json={**BODY, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]


def test_a_response_follows_structured_outputs(http: TestClient) -> None:
    asked = {"structured_outputs": {"choice": ["fox", "dog"]}}
    answer = http.post(PATH, json={**BODY, **asked}).json()
    assert answer["output"][0]["content"][0]["text"] in {"fox", "dog"}
