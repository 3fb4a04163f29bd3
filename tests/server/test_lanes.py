"""Work of one kind does not wait for work of another."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from jaxserve.server.state import ServerState
from tests.server.world import World

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
HOSTILE = b'{"messages":[%b1]}' % (b"[]," * 5_000_000)


@contextmanager
def occupied(http: TestClient, state: ServerState, name: str) -> Iterator[None]:
    """Leave no thread of a lane free."""
    assert http.portal is not None
    lane: anyio.CapacityLimiter = getattr(state.lanes, name)
    holders = [object() for _ in range(int(lane.total_tokens))]
    for holder in holders:
        http.portal.call(lane.acquire_on_behalf_of_nowait, holder)
    try:
        yield
    finally:
        for holder in holders:
            http.portal.call(lane.release_on_behalf_of, holder)


@pytest.mark.parametrize("name", ["bodies", "grammars", "storage"])
def test_a_plain_chat_waits_for_no_other_kind_of_work(name: str) -> None:
    with World() as world, world.http() as http, occupied(http, world.app.state.server, name):
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_grammar_with_a_verdict_does_not_wait_for_others_to_compile() -> None:
    body = {**CHAT, "structured_outputs": {"regex": "ab?"}}
    refused = {**CHAT, "structured_outputs": {"json": {"not": {}}}}
    with World() as world, world.http() as http:
        for _ in range(2):
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert http.post("/v1/chat/completions", json=refused).status_code == 400
        with occupied(http, world.app.state.server, "grammars"):
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert http.post("/v1/chat/completions", json=refused).status_code == 400


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("grammars", {**CHAT, "structured_outputs": {"regex": "ab?"}}),
        ("bodies", {**CHAT, "user": "x" * 2**21}),
        ("prompts", CHAT),
    ],
)
def test_work_waits_for_its_own_kind(name: str, body: Any) -> None:
    with World() as world, world.http() as http, ThreadPoolExecutor(1) as pool:
        with occupied(http, world.app.state.server, name):
            answer = pool.submit(http.post, "/v1/chat/completions", json=body)
            assert http.get("/health").status_code == 200
            time.sleep(0.05)
            assert not answer.done()
        assert answer.result().status_code == 200


def test_hostile_bodies_are_refused_while_probes_are_answered() -> None:
    with World() as world, world.http() as http, ThreadPoolExecutor(8) as pool:
        headers = {"content-type": "application/json"}
        paths = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize")
        answers = [pool.submit(http.post, path, content=HOSTILE, headers=headers) for path in paths]
        num_probes = 0
        while not all(answer.done() for answer in answers):
            assert http.get("/health").status_code == 200
            num_probes += 1
        assert num_probes > 0
        for answer in answers:
            assert answer.result().status_code == 400
            assert "messages makes the body too large" in answer.result().text
