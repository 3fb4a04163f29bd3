"""/v1/files and /v1/batches: storage, execution and results of batches."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.api.request import LOWEST_PRIORITY
from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig
from jaxserve.server.batches.schema import Batch
from jaxserve.server.batches.store import claimed
from tests.data import needs_data
from tests.server.test_openai_spec import check
from tests.server.world import World, wait_for

KEYS = ("sk-one", "sk-two")
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "seed": 1}
FINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(autouse=True, scope="module")
def short_polls() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("runner", "lines"):
            patch.setattr(f"jaxserve.server.batches.{module}.POLL_S", 0.02)
        yield


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with World() as world, serving(world) as http:
        yield http


@contextmanager
def serving(world: World) -> Iterator[TestClient]:
    """A client of a world whose batches are run."""
    with world.http() as http:
        assert http.portal is not None
        http.portal.call(start, world)
        try:
            yield http
        finally:
            http.portal.call(world.app.state.batches.stop)


async def start(world: World) -> None:
    world.app.state.batches.start()


def line(custom_id: str = "a", *, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": {**HELLO, **fields},
    }


def upload(http: TestClient, content: bytes, **headers: str) -> Any:
    files = {"file": ("in.jsonl", BytesIO(content))}
    return http.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers).json()


def begin(http: TestClient, *lines: Any, endpoint: str = CHAT, **fields: Any) -> str:
    """Begin a batch of lines, and return its id."""
    content = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    body = {"endpoint": endpoint, "completion_window": "24h", **fields}
    body["input_file_id"] = upload(http, content)["id"]
    batch = http.post("/v1/batches", json=body).json()
    assert batch["status"] == "validating", batch
    return str(batch["id"])


def ended(http: TestClient, batch_id: str) -> dict[str, Any]:
    """Wait for a batch to end."""
    path = f"/v1/batches/{batch_id}"
    wait_for(lambda: http.get(path).json()["status"] in FINAL)
    batch: dict[str, Any] = http.get(path).json()
    return batch


def results(http: TestClient, file_id: str) -> list[dict[str, Any]]:
    text = http.get(f"/v1/files/{file_id}/content").text
    return [json.loads(result) for result in text.splitlines()]


def change(world: World, batch_id: str, what: Callable[[Batch], None]) -> None:
    world.app.state.server.batches.change(batch_id, what)


# Results


def test_a_batch_gives_what_its_requests_give(http: TestClient) -> None:
    lines = [line("one"), line("two", seed=2)]
    batch = ended(http, begin(http, *lines))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    for result, asked in zip(results(http, batch["output_file_id"]), lines, strict=True):
        assert result["custom_id"] == asked["custom_id"]
        assert result["response"]["status_code"] == 200
        expected = http.post(CHAT, json=asked["body"]).json()["choices"]
        assert result["response"]["body"]["choices"] == expected


def test_what_is_refused_is_in_the_error_file(http: TestClient) -> None:
    batch = ended(http, begin(http, line("good"), line("bad", temperature=-1)))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [error] = results(http, batch["error_file_id"])
    assert error["custom_id"] == "bad"
    assert error["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "hello", "max_tokens": 2}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 2}),
    ],
)
def test_other_endpoints_take_batches(http: TestClient, url: str, body: dict[str, Any]) -> None:
    request = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    batch = ended(http, begin(http, request, endpoint=url))
    assert batch["request_counts"]["completed"] == 1


def test_numbers_of_a_line_are_as_they_are_written(http: TestClient) -> None:
    long = "0.12345678901234567890123456789"
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 0.25}}}
    lines = (line("taken", temperature=0.25), line("refused", response_format=form))
    raw = [json.dumps(each).replace("0.25", long).encode() for each in lines]
    batch = ended(http, begin(http, *raw))
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [error] = results(http, batch["error_file_id"])
    assert error["custom_id"] == "refused"
    assert f"got {long}" in error["response"]["body"]["error"]["message"]


def test_unknown_fields_of_a_line_are_counted(http: TestClient) -> None:
    batch = ended(http, begin(http, {**line(x_in_body=1), "x_beside": 1}))
    assert batch["request_counts"]["completed"] == 1
    text = http.get("/metrics").text
    for name in ("x_in_body", "x_beside"):
        assert f'jaxserve:ignored_fields_total{{field="{name}"}} 1.0' in text


def test_a_strict_server_refuses_unknown_fields_of_a_line() -> None:
    config = ServerConfig(port=0, strict_fields=True)
    with World(config=config) as world, serving(world) as http:
        batch = ended(http, begin(http, {**line(), "x_beside": 1}))
        [error] = results(http, batch["error_file_id"])
    assert error["response"]["body"]["error"]["code"] == "unknown_field"


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        (CHAT, {}),
        ("/v1/responses", {"input": "hello", "messages": None, "max_tokens": None}),
    ],
)
def test_a_strict_server_takes_hosted_tools_of_a_line(url: str, fields: dict[str, Any]) -> None:
    config = ServerConfig(port=0, strict_fields=True)
    tools = [{"type": "web_search", "search_context_size": "low"}]
    lines = [
        line("hosted", url=url, tools=tools, **fields),
        line("unknown", url=url, tools=tools, x_unknown=1, **fields),
    ]
    with World(config=config) as world, serving(world) as http:
        batch = ended(http, begin(http, *lines, endpoint=url))
        [answer] = results(http, batch["output_file_id"])
        [error] = results(http, batch["error_file_id"])
    assert answer["custom_id"] == "hosted"
    assert error["response"]["body"]["error"]["param"] == "x_unknown"


def test_a_stream_cannot_be_a_line(http: TestClient) -> None:
    batch = ended(http, begin(http, line(stream=True)))
    [error] = results(http, batch["error_file_id"])
    assert error["response"]["body"]["error"]["param"] == "stream"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"{"], "invalid_json"),
        ([b"[1]"], "invalid_json"),
        ([line(), line()], "duplicate_custom_id"),
        ([line(url="/v1/completions")], "mismatched_endpoint"),
        ([{**line(), "method": "GET"}], "invalid_line"),
        ([{"custom_id": "a"}], "missing_field"),
        ([b""], "empty_file"),
    ],
)
def test_a_bad_line_fails_its_batch(http: TestClient, lines: list[Any], code: str) -> None:
    batch = ended(http, begin(http, *lines))
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == code
    assert "output_file_id" not in batch


@needs_data
def test_files_and_batches_are_openais(http: TestClient) -> None:
    batch = ended(http, begin(http, line("good"), line("bad", n=0), metadata={"a": "b"}))
    check(batch, "Batch")
    check(http.get("/v1/batches").json(), "ListBatchesResponse")
    check(http.get(f"/v1/files/{batch['output_file_id']}").json(), "OpenAIFile")
    check(http.get("/v1/files").json(), "ListFilesResponse")
    check(http.delete(f"/v1/files/{batch['output_file_id']}").json(), "DeleteFileResponse")


# Scheduling


def test_lines_run_behind_everything_else() -> None:
    with World() as world, serving(world) as http:
        seen: list[int] = []
        add = world.engine.add

        def watch(request: Any, *rest: Any, **more: Any) -> Any:
            seen.append(request.priority)
            return add(request, *rest, **more)

        world.engine.add = watch  # type: ignore[method-assign]
        ended(http, begin(http, line()))
        http.post(CHAT, json=HELLO)
    assert seen == [LOWEST_PRIORITY, 0]


def test_few_lines_are_under_way_at_once() -> None:
    config = ServerConfig(port=0, max_batch_requests=2)
    with World(config=config, step_s=0.002) as world, serving(world) as http:
        ended(http, begin(http, *(line(str(number)) for number in range(12))))
        assert max(len(plan.rows) for plan in world.runner.plans) == 2


def test_a_full_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.server.batches.lines.MIN_RETRY_S", 0.02)
    config = ServerConfig(port=0, max_concurrent_requests=1)
    with World(config=config) as world, serving(world) as http:
        batch = ended(http, begin(http, *(line(str(number)) for number in range(6))))
        assert batch["request_counts"]["completed"] == 6


# Ends


def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    config = ServerConfig(port=0, max_batch_requests=1)
    with World(config=config, step_s=0.005) as world, serving(world) as http:
        lines = (line(str(number), max_tokens=20, ignore_eos=True) for number in range(50))
        batch_id = begin(http, *lines)
        path = f"/v1/batches/{batch_id}"
        wait_for(lambda: http.get(path).json()["request_counts"]["completed"] > 1)
        assert http.post(f"{path}/cancel").json()["status"] == "cancelling"
        batch = ended(http, batch_id)
        assert batch["status"] == "cancelled"
        num_results = len(results(http, batch["output_file_id"]))
        assert 2 <= num_results == batch["request_counts"]["completed"] < 50
        assert http.post(f"{path}/cancel").status_code == 400


def test_what_comes_too_late_expires() -> None:
    config = ServerConfig(port=0, max_batch_requests=1)
    with World(config=config, step_s=0.005) as world, serving(world) as http:
        lines = (line(str(number), max_tokens=20, ignore_eos=True) for number in range(50))
        batch_id = begin(http, *lines)
        path = f"/v1/batches/{batch_id}"
        wait_for(lambda: http.get(path).json()["request_counts"]["completed"] > 1)

        def hurry(batch: Batch) -> None:
            batch.expires_at = int(time.time()) - 1

        change(world, batch_id, hurry)
        batch = ended(http, batch_id)
        assert batch["status"] == "expired"
        errors = results(http, batch["error_file_id"])
        assert {error["error"]["code"] for error in errors} == {"batch_expired"}
        assert len(errors) + len(results(http, batch["output_file_id"])) == 50


def test_a_restart_goes_on_where_the_last_server_was(tmp_path: Path) -> None:
    config = ServerConfig(port=0, max_batch_requests=2, batch_dir=str(tmp_path))
    with World(config=config, step_s=0.005) as world, serving(world) as http:
        lines = (line(str(number), max_tokens=10, ignore_eos=True) for number in range(20))
        batch_id = begin(http, *lines)
        path = f"/v1/batches/{batch_id}"
        wait_for(lambda: http.get(path).json()["request_counts"]["completed"] > 3)
    with World(config=config) as world, serving(world) as http:
        before = http.get(path).json()["request_counts"]["completed"]
        batch = ended(http, batch_id)
        assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        ids = [result["custom_id"] for result in results(http, batch["output_file_id"])]
        assert ids == [str(number) for number in range(20)]
        # Lines that the first server answered are not repeated.
        count = 'handler="/v1/chat/completions",method="POST",status="200"} '
        [asked] = [
            float(row.split()[-1])
            for row in http.get("/metrics").text.splitlines()
            if count.strip() in row
        ]
        assert asked == 20 - before < 17


def test_one_server_at_a_time_has_a_folder(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(ConfigError, match="in use by another server"),
        claimed(tmp_path),
    ):
        pass


# Files


def test_a_file_comes_back_as_it_was(http: TestClient) -> None:
    content = bytes(range(256)) * 10_000
    file = upload(http, content)
    assert file["bytes"] == len(content)
    assert http.get(f"/v1/files/{file['id']}").json() == file
    assert http.get(f"/v1/files/{file['id']}/content").content == content


def test_a_deleted_file_is_gone(http: TestClient) -> None:
    path = f"/v1/files/{upload(http, b'x')['id']}"
    assert http.delete(path).json()["deleted"]
    for method, url in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
        assert http.request(method, url).status_code == 404


def test_another_keys_files_and_batches_do_not_exist() -> None:
    with World(config=ServerConfig(port=0, api_keys=KEYS)) as world, world.http() as http:
        one, two = ({"authorization": f"Bearer {key}"} for key in KEYS)
        file = upload(http, b"x", **one)
        body = {
            "input_file_id": file["id"],
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        batch = http.post("/v1/batches", json=body, headers=one).json()
        for path in (
            f"/v1/files/{file['id']}",
            f"/v1/files/{file['id']}/content",
            f"/v1/batches/{batch['id']}",
        ):
            assert http.get(path, headers=one).status_code == 200
            assert http.get(path, headers=two).status_code == 404
        assert http.post("/v1/batches", json=body, headers=two).status_code == 404
        assert http.get("/v1/files", headers=two).json()["data"] == []
        assert http.get("/v1/batches", headers=two).json()["data"] == []


def test_there_is_only_so_much_room() -> None:
    with World(config=ServerConfig(port=0, max_batch_bytes=100)) as world, world.http() as http:
        first = upload(http, b"x" * 60)
        assert upload(http, b"x" * 60)["error"]["code"] == "storage_full"
        http.delete(f"/v1/files/{first['id']}")
        assert upload(http, b"x" * 60)["bytes"] == 60


def test_pages_of_files_follow_each_other(http: TestClient) -> None:
    for _ in range(3):
        upload(http, b"x")
    first = http.get("/v1/files?limit=2").json()
    assert first["has_more"]
    second = http.get(f"/v1/files?limit=2&after={first['last_id']}").json()
    assert first["last_id"] != second["first_id"]
    assert http.get("/v1/files?limit=0").status_code == 400
    assert http.get("/v1/files?after=nothing").status_code == 400
