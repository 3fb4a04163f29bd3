"""Malformed requests to any path get a 4xx response in the API's error format."""

from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from jaxserve.server.app import ROUTES, TOKENIZER_PATHS
from tests.server.invalid_bodies import NO_JSON
from tests.server.world import World

JSON = {"content-type": "application/json"}
RESPONSES, MESSAGES, FILES, BATCHES = "/v1/responses", "/v1/messages", "/v1/files", "/v1/batches"
COUNT = f"{MESSAGES}/count_tokens"
HELLO = [{"role": "user", "content": "hello"}]
# That take a JSON body.
POSTS = sorted(
    route.path
    for route in ROUTES
    if isinstance(route, Route)
    and "POST" in (route.methods or ())
    and "{" not in route.path
    and route.path not in {FILES, "/ping"}
)
PATHS = sorted({route.path for route in ROUTES if isinstance(route, Route)} - TOKENIZER_PATHS)

# Bodies that no endpoint takes.
NO_BODY: list[dict[str, Any]] = [
    {},
    {"nothing_like_it": 1},
    {"model": 5},
    {"model": ["tiny/model"]},
    {"model": "x" * 100_000, "nothing_like_it": None, "other": 1},
    {"": 1},
    {"__proto__": {"a": 1}},
    {"messages": {"0": "hello"}, "input": {}, "prompt": {}, "query": []},
]


def response(**fields: Any) -> dict[str, Any]:
    return {"input": "hello", "max_output_tokens": 2, **fields}


def item(**fields: Any) -> dict[str, Any]:
    return response(input=[fields])


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "alias", "messages": HELLO, "max_tokens": 2, **fields}


def block(role: str = "user", **fields: Any) -> dict[str, Any]:
    return message(messages=[{"role": role, "content": [fields]}])


def batch(**fields: Any) -> dict[str, Any]:
    body = {
        "input_file_id": "file-x",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    return {**body, **fields}


# path, body, and what the message must say
FIELDS: list[tuple[str, Any, str]] = [
    (RESPONSES, response(input=[]), "input must not be empty"),
    (RESPONSES, response(input=5), "input must be a list"),
    (RESPONSES, response(input=["hello"]), "input[0] must be an item of type message"),
    (RESPONSES, response(input=HELLO * 5000), "at most 4096 entries"),
    (RESPONSES, item(role="wizard", content="x"), "input[0].role must be one of"),
    (RESPONSES, item(role="user"), "input[0].content is required"),
    (RESPONSES, item(role="user", content=5), "input[0].content must be a list"),
    (RESPONSES, item(role="user", content=[{"type": "input_image"}]), "input[0].content[0] must"),
    (RESPONSES, item(role="user", content=[{"type": "input_text"}]), "content[0].text is required"),
    (RESPONSES, item(role="user", content=[{"type": 5}]), "must be a part of type input_text"),
    (RESPONSES, item(type="computer_call", id="x"), "others are not supported"),
    (RESPONSES, item(type="shell_call", id="x"), "others are not supported"),
    (RESPONSES, item(type="function_call", name="f", arguments="{}"), "call_id is required"),
    (
        RESPONSES,
        item(type="function_call", call_id="c", name="f", arguments={}),
        "arguments must be a string",
    ),
    (RESPONSES, item(type="function_call_output", call_id="c"), "output is required"),
    (RESPONSES, item(type="reasoning", encrypted_content=5), "input[0].encrypted_content"),
    (RESPONSES, response(instructions=5), "instructions must be a string"),
    (RESPONSES, response(previous_response_id=5), "previous_response_id must be a string"),
    (RESPONSES, response(previous_response_id="resp_x"), "id 'resp_x' not found"),
    (RESPONSES, response(previous_response_id="'; DROP TABLE responses; --"), "not found"),
    (RESPONSES, response(conversation="conv_1"), "conversation is not supported"),
    (RESPONSES, response(prompt={"id": "p"}), "prompt is not supported"),
    (RESPONSES, response(truncation="never"), "truncation must be one of 'auto' or 'disabled'"),
    (RESPONSES, response(tools=5), "tools must be a list"),
    (
        RESPONSES,
        response(tools=[{"type": "laundry"}]),
        "tools[0] must be a tool of type",
    ),
    (RESPONSES, response(tool_choice={"type": "web_search"}), "runs no tools of its own"),
    (
        RESPONSES,
        response(tools=[{"type": "web_search"}], tool_choice="required"),
        "tool_choice can only be required if tools are given",
    ),
    (RESPONSES, response(tools=[{"type": "namespace", "name": "n"}]), "tools[0].tools is required"),
    (
        RESPONSES,
        response(
            tools=[
                {
                    "type": "custom",
                    "name": "f",
                    "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
                }
            ]
        ),
        "there is no rule 'x'",
    ),
    (RESPONSES, response(tools=[{"type": "function"}]), "tools[0].name is required"),
    (RESPONSES, response(tools=[{"name": "f"}]), "must be a tool of type function, custom or"),
    (RESPONSES, response(tool_choice="maybe"), "tool_choice must be one of 'none', 'auto' or"),
    (RESPONSES, response(tool_choice=5), "tool_choice must be none, auto, required"),
    (
        RESPONSES,
        response(tool_choice={"type": "function"}, tools=[{"type": "function", "name": "f"}]),
        "tool_choice.name is required",
    ),
    (
        RESPONSES,
        response(text={"format": {"type": "yaml"}}),
        "text.format must be an object of type",
    ),
    (RESPONSES, response(text={"format": {"type": "json_schema"}}), "format.name is required"),
    (RESPONSES, response(reasoning={"effort": "vast"}), "reasoning.effort must be one of"),
    (RESPONSES, response(reasoning=5), "reasoning must be an object"),
    (RESPONSES, response(include=["weather.results"]), "include[0] must be one of"),
    (RESPONSES, response(top_logprobs=21), "top_logprobs must be at most 20"),
    (RESPONSES, response(max_output_tokens=0), "max_output_tokens must be at least 1"),
    (RESPONSES, response(max_output_tokens=5000), "maximum context length is 128"),
    (RESPONSES, response(input="z" * 5000), "maximum context length is 128"),
    (RESPONSES, response(temperature=-1), "temperature must be in [0, 100]"),
    (RESPONSES, response(temperature="hot"), "temperature must be a number"),
    (RESPONSES, response(top_p=2), "top_p must be in (0, 1]"),
    (RESPONSES, response(stream="yes"), "stream must be true or false"),
    (RESPONSES, response(store=1), "store must be true or false"),
    (RESPONSES, response(background=True, stream=True), "`stream` is false"),
    (RESPONSES, response(background=True, store=False), "`store` is true"),
    (RESPONSES, response(metadata={"a": 5}), "metadata.a must be a string"),
    (RESPONSES, response(metadata={str(n): "" for n in range(17)}), "at most 16 entries"),
    (RESPONSES, response(model="gpt-9"), "'gpt-9' does not exist"),
    (f"{RESPONSES}/input_tokens", {"input": []}, "input must not be empty"),
    (MESSAGES, message(model=None), "model is required"),
    (MESSAGES, message(model="claude"), "'claude' does not exist"),
    (MESSAGES, message(max_tokens=None), "max_tokens is required"),
    (MESSAGES, message(max_tokens=0), "max_tokens must be in [1, 2147483647]"),
    (MESSAGES, message(max_tokens="5"), "max_tokens must be an integer"),
    (MESSAGES, message(messages=[]), "messages must be at least 1 entries"),
    (MESSAGES, message(messages="hello"), "messages must be a list"),
    (MESSAGES, message(messages=[5]), "messages[0] must be an object"),
    (MESSAGES, message(messages=[{"role": "tool", "content": "x"}]), "messages[0].role must be"),
    (MESSAGES, message(messages=[{"role": "user"}]), "messages[0].content is required"),
    (MESSAGES, message(messages=[{"role": "user", "content": 5}]), "content must be a list"),
    (MESSAGES, block(type="image"), "messages[0].content[0] must be a block of type text"),
    (MESSAGES, block(type="image"), "others are not supported"),
    (
        MESSAGES,
        block(type="document", source={"type": "base64", "media_type": "application/pdf"}),
        "this server reads text only",
    ),
    (MESSAGES, block(type="text"), "messages[0].content[0].text is required"),
    (MESSAGES, block(type="text", text=5), "messages[0].content[0].text must be a string"),
    (MESSAGES, block(text="x"), "must be a block of type text"),
    (MESSAGES, block(type="thinking", thinking="x"), "must not be of type thinking"),
    (MESSAGES, block(type="tool_use", id="a", name="f", input={}), "must not be of type tool_use"),
    (MESSAGES, block("assistant", type="tool_use", id="a", name="f", input=5), "input must be an"),
    (MESSAGES, block("assistant", type="tool_result", tool_use_id="a"), "must not be of type"),
    (MESSAGES, block(type="tool_result"), "tool_use_id is required"),
    (MESSAGES, block(type="tool_result", tool_use_id="a", content=[{"type": "image"}]), "type"),
    (MESSAGES, message(system=5), "system must be a list"),
    (MESSAGES, message(system=[{"type": "image"}]), "system[0].type must be one of 'text'"),
    (MESSAGES, message(tools=[{"name": "f"}]), "tools[0].input_schema is required"),
    (MESSAGES, message(tools=[{"type": "laundry", "name": "f"}]), "tools[0].type must be text"),
    (MESSAGES, message(tool_choice="auto"), "tool_choice must be an object"),
    (MESSAGES, message(tool_choice={"type": "all"}), "tool_choice must be an object of type"),
    (MESSAGES, message(tool_choice={"type": "tool"}), "tool_choice.name is required"),
    (MESSAGES, message(thinking={"type": "enabled"}), "thinking.budget_tokens is required"),
    (MESSAGES, message(thinking={"type": "enabled", "budget_tokens": 0}), "at least 1"),
    (MESSAGES, message(thinking=True), "thinking must be an object"),
    (MESSAGES, message(output_config={"effort": "vast"}), "output_config.effort must be one of"),
    (MESSAGES, message(output_config={"format": {"type": "yaml"}}), "format.type must be one of"),
    (MESSAGES, message(stop_sequences="x"), "stop_sequences must be a list"),
    (MESSAGES, message(stop_sequences=[""]), "stop_sequences must be strings of 1 to 256"),
    (MESSAGES, message(stop_sequences=["x"] * 17), "stop_sequences must have at most 16"),
    (MESSAGES, message(temperature=-1), "temperature must be in [0, 100]"),
    (MESSAGES, message(top_k=-2), "top_k must be in [-1, 2147483647]"),
    (MESSAGES, message(stream=1), "stream must be true or false"),
    (MESSAGES, message(mcp_servers=[{"type": "url"}]), "mcp_servers is not supported"),
    (MESSAGES, message(container="c"), "container is not supported"),
    (
        MESSAGES,
        message(context_management={"edits": [1]}),
        "must be an edit of type clear_thinking",
    ),
    (COUNT, {"model": "alias", "messages": []}, "at least 1 entries"),
    (BATCHES, batch(), "no file 'file-x'"),
    (BATCHES, batch(input_file_id=5), "input_file_id must be a string"),
    (BATCHES, batch(input_file_id="../../etc/passwd"), "no file '../../etc/passwd'"),
    (BATCHES, batch(endpoint="/v1/moderations"), "endpoint must be one of"),
    (BATCHES, batch(completion_window="1h"), "completion_window must be one of '24h'"),
    (BATCHES, batch(metadata=[]), "metadata must be an object"),
    (BATCHES, batch(output_expires_after={"anchor": "created_at"}), "seconds is required"),
    (
        BATCHES,
        batch(output_expires_after={"anchor": "created_at", "seconds": 5}),
        "seconds must be at least 3600",
    ),
]

# method, path, status
PLACES = [
    ("GET", f"{RESPONSES}/resp_x", 404),
    ("DELETE", f"{RESPONSES}/resp_x", 404),
    ("POST", f"{RESPONSES}/resp_x/cancel", 404),
    ("GET", f"{RESPONSES}/resp_x/input_items", 404),
    ("GET", f"{RESPONSES}/%00", 404),
    ("GET", f"{RESPONSES}/{'x' * 5000}", 404),
    ("GET", f"{FILES}/file-x", 404),
    ("GET", f"{FILES}/..%2f..%2fetc%2fpasswd", 404),
    ("GET", f"{FILES}/file-x/content", 404),
    ("GET", f"{FILES}/%2e%2e/content", 404),
    ("DELETE", f"{FILES}/file-x", 404),
    ("GET", f"{FILES}?limit=x", 400),
    ("GET", f"{FILES}?limit=-1", 400),
    ("GET", f"{FILES}?limit=99999999999999999999", 400),
    ("GET", f"{FILES}?after=file-x", 400),
    ("GET", f"{BATCHES}?limit=101", 400),
    ("GET", f"{BATCHES}/batch_x", 404),
    ("POST", f"{BATCHES}/batch_x/cancel", 404),
    ("POST", FILES, 400),
    ("POST", "/v1/moderations", 404),
    ("GET", "/v1/responses", 405),
    ("PUT", FILES, 405),
    ("PATCH", MESSAGES, 405),
]


@pytest.fixture(autouse=True)
def unmoved(world: World, http: TestClient) -> Any:
    """After every one of these the server answers, and its engine has nothing to do."""
    yield
    assert http.post("/tokenize", json={"prompt": "hello"}).status_code == 200
    assert world.is_idle()


def check_error(answer: Any, path: str, status: int | None = None) -> str:
    """Assert that an answer is an error in the form of its path, and return its message."""
    assert answer.status_code == status or (status is None and 400 <= answer.status_code < 500)
    error = answer.json()["error"]
    if path.startswith(MESSAGES):
        assert answer.json().keys() == {"type", "error"}
        assert error.keys() == {"type", "message"}
    else:
        assert answer.json().keys() == {"error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "0x" not in error["message"]
    assert len(error["message"]) < 500
    return str(error["message"])


@pytest.mark.parametrize("body", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json(http: TestClient, path: str, body: bytes) -> None:
    check_error(http.post(path, content=body, headers=JSON), path)


@pytest.mark.parametrize("body", NO_BODY, ids=range(len(NO_BODY)))
@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_body_of_any_endpoint(http: TestClient, path: str, body: Any) -> None:
    check_error(http.post(path, json=body), path)


@pytest.mark.parametrize("path", POSTS)
def test_what_is_not_called_json(http: TestClient, path: str) -> None:
    check_error(http.post(path, content=b"{}"), path, 415)


@pytest.mark.parametrize("path", PATHS)
def test_a_method_that_is_not_there(http: TestClient, path: str) -> None:
    check_error(http.request("TRACE", path), path, 405)


@pytest.mark.parametrize(("path", "body", "says"), FIELDS, ids=range(len(FIELDS)))
def test_a_wrong_field_is_named(http: TestClient, path: str, body: Any, says: str) -> None:
    assert says in check_error(http.post(path, json=body), path)


@pytest.mark.parametrize(("method", "path", "status"), PLACES)
def test_what_is_not_there(http: TestClient, method: str, path: str, status: int) -> None:
    check_error(http.request(method, path), path, status)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"purpose": "batch"},
        {"purpose": "fine-tune"},
        {"purpose": "batch", "expires_after[anchor]": "created_at"},
        {"purpose": "batch", "expires_after[seconds]": "x"},
        {"purpose": "batch", **{str(n): "x" for n in range(20)}},
        {"purpose": "x" * 100_000},
    ],
    ids=range(7),
)
def test_a_wrong_form(http: TestClient, fields: dict[str, str]) -> None:
    files = {"file": b"x"} if fields != {"purpose": "batch"} else {"other": b"x"}
    check_error(http.post(FILES, data=fields, files=files), FILES, 400)


def test_a_form_that_breaks_off(http: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    check_error(http.post(FILES, content=b"--x\r\nContent-Dis", headers=headers), FILES, 400)


COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = {"type": "text", "text": ""}

# path, body, field at fault, its limit
WIDE: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETIONS, {"prompt": [[1]] * 3000}, "prompt", "2048 prompts"),
    (COMPLETIONS, {"prompt": ["a"] * 300}, "n", "256"),
    (COMPLETIONS, {"prompt": "a", "allowed_token_ids": [1] * 300_000}, "allowed_token_ids", "2621"),
    (COMPLETIONS, {"prompt": "a", "stop": ["a"] * 20_000}, "stop", "16"),
    (COMPLETIONS, {"prompt": "a", "stop_token_ids": [1] * 9000}, "stop_token_ids", "64"),
    (COMPLETIONS, {"prompt": "a", "bad_words": ["a"] * 9000}, "bad_words", "32"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(70_000)), 1)},
     "logit_bias", "65536"),
    (COMPLETIONS, {"prompt": "a", "vllm_xargs": {"a": "x" * 2**17}}, "vllm_xargs", "65536 bytes"),
    (COMPLETIONS, {"prompt": "a", **dict.fromkeys(map(str, range(9000)), 1)}, "", "256 fields"),
    (CHATS, {"messages": HELLO * 5000}, "messages", "4096"),
    (CHATS, {"messages": [{"role": "user", "content": [TEXT] * 5000}]}, "messages[0].content",
     "4096"),
    (CHATS, {"messages": [{"role": "assistant", "tool_calls": [CALL] * 5000}]},
     "messages[0].tool_calls", "4096"),
    (CHATS, {"messages": HELLO, "structured_outputs": {"choice": ["a"] * 70_000}},
     "structured_outputs.choice", "65536"),
    (MESSAGES, message(messages=[{"role": "user", "content": [TEXT] * 5000}]),
     "messages[0].content", "4096"),
    (MESSAGES, message(system=[TEXT] * 5000), "system", "4096"),
    (RESPONSES, item(role="user", content=[{"type": "input_text", "text": ""}] * 5000),
     "input[0].content", "4096"),
    (RESPONSES, response(metadata=dict.fromkeys(map(str, range(9000)), "a")), "metadata", "16"),
    ("/tokenize", {"messages": HELLO * 5000}, "messages", "4096"),
    ("/detokenize", {"tokens": [1] * 1_100_000}, "tokens", "1048576"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "limit"), WIDE)
def test_too_many_entries_are_refused_by_name(
    http: TestClient, path: str, body: dict[str, Any], param: str, limit: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert limit in error["message"]
    assert path == MESSAGES or error["param"] == (param or None)
