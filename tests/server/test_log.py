"""The access log: one line a request, with numbers and names, never with contents."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jaxserve.observability.logging import configure_logging
from jaxserve.server import ServerConfig
from tests.server.world import World, wait_for

BODY = {"prompt": "the quick brown fox", "max_tokens": 3, "seed": 1}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    yield stream
    root.handlers, root.level = handlers, level


def lines(log: io.StringIO) -> list[Any]:
    entries = [json.loads(line) for line in log.getvalue().splitlines()]
    return [entry for entry in entries if entry["event"] == "request"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_of_numbers(log: io.StringIO, stream: bool) -> None:
    with World() as world:
        headers = {"x-request-id": "mine"}
        world.http().post("/v1/completions", json={**BODY, "stream": stream}, headers=headers)
    (line,) = lines(log)
    assert line["request_id"] == "mine"
    assert (line["path"], line["status"]) == ("/v1/completions", 200)
    assert (line["model"], line["completion_tokens"]) == ("tiny/model", 3)
    assert 0 < line["first_token_s"] < line["seconds"]


def test_a_request_that_is_left_is_logged_with_what_it_came_to(log: io.StringIO) -> None:
    with World(step_s=0.01) as world, world.listening() as address:
        body = {**BODY, "max_tokens": 100, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{address.url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        wait_for(lambda: bool(lines(log)))
    (line,) = lines(log)
    assert line["finish_reason"] == "abort"
    assert line["prompt_tokens"] > 0
    assert 0 < line["completion_tokens"] < 100


def test_nothing_said_and_no_key_is_logged(log: io.StringIO) -> None:
    with World(config=ServerConfig(port=0, api_keys=("sk-secret",))) as world:
        headers = {"authorization": "Bearer sk-secret"}
        text = world.http().post("/v1/completions", json=BODY, headers=headers).json()
        world.http().post("/v1/completions", json={**BODY, "n": 0}, headers=headers)
    assert "quick" not in log.getvalue()
    assert "sk-secret" not in log.getvalue()
    assert json.dumps(text["choices"][0]["text"]) not in log.getvalue()
    assert len(lines(log)[0]["tenant"]) == 12


def test_a_request_cannot_forge_a_line(log: io.StringIO) -> None:
    with World() as world:
        world.http().get('/x%0a{"event":"request"}')
    assert len(lines(log)) == 1


def test_probes_are_not_logged_while_all_is_well(log: io.StringIO) -> None:
    with World() as world:
        for path in ("/health", "/ready", "/metrics"):
            assert world.http().get(path).status_code == 200
    assert lines(log) == []


def test_a_fault_of_ours_is_logged_with_its_traceback_and_answered_without(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World() as world:
        monkeypatch.setattr(world.metrics, "snapshot", lambda: 1 / 0)
        response = world.http().get("/metrics")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "x-request-id" in response.headers
    assert "ZeroDivisionError" not in response.text
    assert "ZeroDivisionError" in log.getvalue()
    assert lines(log)[0]["status"] == 500
