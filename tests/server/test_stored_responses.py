"""/v1/responses: responses that are stored, continued, or run in the background."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.frontend.schema.parsing import parse
from jaxserve.server import ServerConfig
from jaxserve.server.responses.items import with_ids
from jaxserve.server.responses.schema import ResponsesBody
from tests.server.response_calls import BODY, PATH, stream
from tests.server.world import World, wait_for

KEYS = ("sk-one", "sk-two")


def test_a_response_can_be_had_again(http: TestClient) -> None:
    response = http.post(PATH, json={**BODY, "metadata": {"a": "b"}}).json()
    assert response["metadata"] == {"a": "b"}
    assert http.get(f"{PATH}/{response['id']}").json() == response
    [item] = http.get(f"{PATH}/{response['id']}/input_items").json()["data"]
    assert item["content"] == [{"type": "input_text", "text": "hello"}]


def test_a_conversation_goes_on_from_a_response(http: TestClient) -> None:
    first = http.post(PATH, json=BODY).json()
    follows = {**BODY, "previous_response_id": first["id"], "instructions": "once"}
    second = http.post(PATH, json=follows).json()
    answer = first["output"][0]["content"][0]["text"]
    chat = [
        {"role": "system", "content": "once"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "hello"},
    ]
    expected = http.post("/tokenize", json={"messages": chat}).json()["count"]
    assert second["usage"]["input_tokens"] == expected


def test_a_streamed_response_can_be_gone_on_from(http: TestClient) -> None:
    response = stream(http)[-1]["response"]
    assert http.get(f"{PATH}/{response['id']}").json() == response


def test_a_response_that_is_not_stored_is_not_there(http: TestClient) -> None:
    response = http.post(PATH, json={**BODY, "store": False}).json()
    answer = http.get(f"{PATH}/{response['id']}")
    assert answer.status_code == 404
    assert f"Response with id '{response['id']}' not found." in answer.json()["error"]["message"]
    error = http.post(PATH, json={**BODY, "previous_response_id": response["id"]}).json()["error"]
    assert error["code"] == "previous_response_not_found"


def test_a_deleted_response_is_gone(http: TestClient) -> None:
    response = http.post(PATH, json=BODY).json()
    assert http.delete(f"{PATH}/{response['id']}").json()["deleted"]
    assert http.get(f"{PATH}/{response['id']}").status_code == 404
    assert http.delete(f"{PATH}/{response['id']}").status_code == 404


def test_another_keys_response_does_not_exist() -> None:
    with World(config=ServerConfig(port=0, api_keys=KEYS)) as world, world.http() as http:
        one, two = ({"authorization": f"Bearer {key}"} for key in KEYS)
        path = f"{PATH}/{http.post(PATH, json=BODY, headers=one).json()['id']}"
        assert http.get(path, headers=one).status_code == 200
        for method in ("GET", "DELETE"):
            assert http.request(method, path, headers=two).status_code == 404
        follows = {**BODY, "previous_response_id": path.rpartition("/")[2]}
        assert http.post(PATH, json=follows, headers=two).status_code == 400


@pytest.mark.parametrize(
    "bound", [{"max_stored_responses": 2}, {"max_stored_response_bytes": 3000}]
)
def test_the_least_recently_used_responses_are_given_up(bound: Any) -> None:
    with World(config=ServerConfig(port=0, **bound)) as world, world.http() as http:
        first, second = (http.post(PATH, json=BODY).json()["id"] for _ in range(2))
        http.get(f"{PATH}/{first}")
        third = http.post(PATH, json=BODY).json()["id"]
        found = [http.get(f"{PATH}/{name}").status_code for name in (first, second, third)]
        assert found == [200, 404, 200]


def test_processes_share_what_they_keep(world: World) -> None:
    with World(folder=world.folder) as other, other.http() as http, world.http() as first:
        made = first.post(PATH, json=BODY).json()
        assert http.get(f"{PATH}/{made['id']}").json() == made


def test_a_response_is_made_in_the_background(http: TestClient) -> None:
    queued = http.post(PATH, json={**BODY, "background": True}).json()
    assert queued["status"] == "queued"
    path = f"{PATH}/{queued['id']}"
    wait_for(lambda: http.get(path).json()["status"] == "incomplete")
    assert http.get(path).json()["output"]


def test_a_response_in_the_background_can_be_cancelled() -> None:
    with World(step_s=0.02) as world, world.http() as http:
        fields = {"background": True, "max_output_tokens": 100, "ignore_eos": True}
        path = f"{PATH}/{http.post(PATH, json={**BODY, **fields}).json()['id']}"
        assert http.post(f"{path}/cancel").json()["status"] == "cancelled"
        world.wait_until_idle()
        assert http.get(path).json()["status"] == "cancelled"


def test_only_the_background_can_be_cancelled(http: TestClient) -> None:
    path = f"{PATH}/{http.post(PATH, json=BODY).json()['id']}"
    answer = http.post(f"{path}/cancel")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Cannot cancel a synchronous response")


def test_what_is_kept_has_ids() -> None:
    items = parse(BODY, ResponsesBody).input
    [item] = with_ids(items, "resp_12")
    assert item["id"] == "msg_128000"
