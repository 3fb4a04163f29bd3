"""References to items of stored responses, which the AI SDK sends for what it got before."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from tests.chat.answers import form_of
from tests.server.world import World

PATH = "/v1/responses"
KEYS = ("sk-one", "sk-two")
ASKED = {"role": "user", "content": "hello"}
BODY: dict[str, Any] = {"input": [ASKED], "max_output_tokens": 4}
TOOL = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}}},
}


def reference(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "item_reference", "id": item["id"]}


def num_tokens(http: TestClient, items: list[Any]) -> int:
    answer = http.post(f"{PATH}/input_tokens", json={"input": items})
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["input_tokens"]
    return count


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_gone_on_from_by_references(*, stream: bool) -> None:
    with World(answers=form_of("hermes"), max_model_len=1024) as world, world.http() as http:
        fields = {**BODY, "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200}
        first = http.post(PATH, json={**fields, "parallel_tool_calls": False}).json()
        call = next(item for item in first["output"] if item["type"] == "function_call")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a fox"}
        follows = [ASKED, *map(reference, first["output"]), result]
        body = {**BODY, "input": follows, "tools": [TOOL], "stream": stream}
        answer = http.post(PATH, json=body)
        assert answer.status_code == 200, answer.text
        assert num_tokens(http, follows) == num_tokens(http, [ASKED, *first["output"], result])


def test_items_of_the_input_can_be_referred_to_and_are_kept(http: TestClient) -> None:
    first = http.post(PATH, json=BODY).json()
    listed = http.get(f"{PATH}/{first['id']}/input_items").json()["data"]
    follows = [*map(reference, [*listed, *first["output"]]), ASKED]
    second = http.post(PATH, json={**BODY, "input": follows}).json()
    kept = http.get(f"{PATH}/{second['id']}/input_items").json()["data"]
    assert [item["type"] for item in kept] == ["message"] * 3
    assert kept[0]["content"] == [{"type": "input_text", "text": "hello"}]
    goes_on = {"input": [ASKED], "previous_response_id": second["id"], "max_output_tokens": 2}
    answer = http.post(PATH, json=goes_on)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["msg_12", "", "resp_", "msg_" + "0" * 36])
def test_an_item_that_is_not_there_is_named(http: TestClient, name: str) -> None:
    items = [ASKED, {"type": "item_reference", "id": name}]
    answer = http.post(PATH, json={**BODY, "input": items})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("input[1].id", "not_found")


def test_an_item_that_was_not_stored_is_not_there(http: TestClient) -> None:
    first = http.post(PATH, json={**BODY, "store": False}).json()
    answer = http.post(PATH, json={**BODY, "input": [reference(first["output"][0])]})
    assert answer.status_code == 404


def test_another_keys_item_does_not_exist() -> None:
    with World(config=ServerConfig(port=0, api_keys=KEYS)) as world, world.http() as http:
        one, two = ({"authorization": f"Bearer {key}"} for key in KEYS)
        [item] = http.post(PATH, json=BODY, headers=one).json()["output"]
        body = {**BODY, "input": [reference(item)]}
        assert http.post(PATH, json=body, headers=one).status_code == 200
        assert http.post(PATH, json=body, headers=two).status_code == 404


def test_a_reference_needs_no_type(http: TestClient) -> None:
    first = http.post(PATH, json=BODY).json()
    typed = [*map(reference, first["output"])]
    untyped = [{"id": item["id"]} for item in first["output"]]
    assert num_tokens(http, [*untyped, ASKED]) == num_tokens(http, [*typed, ASKED])
    gone = http.post(PATH, json={**BODY, "input": [{"id": "msg_gone", "type": None}]})
    assert gone.status_code == 404
    assert gone.json()["error"]["param"] == "input[0].id"


SEARCHED: dict[str, Any] = {
    "type": "web_search_call",
    "id": "ws_1",
    "status": "completed",
    "action": {"type": "search", "query": "fox"},
}


@pytest.mark.parametrize(
    "item",
    [SEARCHED, {"type": "compaction", "id": "cmp_1", "encrypted_content": "opaque"}],
    ids=["search", "compaction"],
)
def test_what_openais_servers_did_is_left_out_and_told(item: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "a fox"}
    config = ServerConfig(port=0, strict_fields=True)
    with World(config=config) as world, world.http() as http:
        answer = http.post(PATH, json={**BODY, "input": [ASKED, item, said, ASKED]})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-jaxserve-ignored"] == f"input[].{item['type']}"
        assert num_tokens(http, [ASKED, item, said]) == num_tokens(http, [ASKED, said])
        goes_on = {**BODY, "previous_response_id": answer.json()["id"]}
        assert http.post(PATH, json=goes_on).status_code == 200
        listed = http.get(f"{PATH}/{answer.json()['id']}/input_items").json()["data"]
    assert listed[1] == {**item, "status": "completed"}


def test_context_management_has_no_effect_and_is_told(http: TestClient) -> None:
    edits = [{"type": "compaction", "compact_threshold": 1000}]
    answer = http.post(PATH, json={**BODY, "context_management": edits})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-jaxserve-ignored"] == "context_management"
