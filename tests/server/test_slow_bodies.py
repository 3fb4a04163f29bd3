"""Bodies that drip are cut, those over honest slow links are read, and big ones share a budget."""

import json
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from jaxserve.server import ServerConfig
from jaxserve.server.errors import BodiesFullError
from jaxserve.server.http.body_budget import BodyBudget
from jaxserve.server.state import FREE_BODY_BYTES
from tests.server.sockets import connected, one_answer, post_head, until_closed
from tests.server.world import Address, World, wait_for

PATH = "/v1/completions"
KIB = 2**10
# Each may pause for as long, so that only the total is what cuts.
TIMEOUT_S = 0.5
FORM = (
    b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n"
    b"content-type: multipart/form-data; boundary=x\r\n\r\n"
    b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
)


def drip(client: socket.socket, stop: threading.Event) -> None:
    with suppress(OSError):
        while not stop.wait(TIMEOUT_S / 10):
            client.sendall(b" ")


@pytest.mark.parametrize("head", [post_head(PATH, 1000), FORM], ids=["JSON", "upload"])
def test_a_body_that_drips_is_cut_with_an_error(head: bytes) -> None:
    config = ServerConfig(port=0, body_timeout_s=TIMEOUT_S)
    with World(config=config) as world, world.listening() as address, connected(address) as client:
        client.sendall(head)
        stop, began_s = threading.Event(), time.monotonic()
        dripping = threading.Thread(target=drip, args=(client, stop))
        dripping.start()
        status, headers, body = one_answer(until_closed(client))
        seconds = time.monotonic() - began_s
        stop.set()
        dripping.join()
    assert (status, headers["connection"]) == (408, "close")
    assert body["error"]["code"] == "body_late"
    assert "bytes a second" in body["error"]["message"]
    assert seconds < 10 * TIMEOUT_S


def test_a_body_at_the_minimum_rate_is_read() -> None:
    # Slower than twice the timeout alone would allow.
    config = ServerConfig(port=0, body_timeout_s=TIMEOUT_S, min_body_rate=KIB)
    data = json.dumps({"prompt": "hello", "max_tokens": 1, "user": "x" * 20 * KIB}).encode()
    with World(config=config) as world, world.listening() as address, connected(address) as client:
        client.sendall(post_head(PATH, len(data)))
        began_s = time.monotonic()
        for start in range(0, len(data), KIB):
            client.sendall(data[start : start + KIB])
            time.sleep(0.1)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began_s > 3 * TIMEOUT_S


def hold(stack: ExitStack, address: Address, num_bytes: int) -> socket.socket:
    """Send a body but for its last byte."""
    client = stack.enter_context(connected(address))
    client.sendall(post_head(PATH, num_bytes + 1) + b" " * num_bytes)
    return client


def test_big_bodies_share_a_budget_and_small_ones_get_through() -> None:
    config = ServerConfig(port=0, max_buffered_body_bytes=1024 * KIB)
    big = 500 * KIB + FREE_BODY_BYTES
    small = {"prompt": "hello", "max_tokens": 1}
    with World(config=config) as world, world.listening() as address, ExitStack() as stack:
        budget = world.app.state.server.body_budget
        held = [hold(stack, address, big) for _ in range(2)]
        wait_for(lambda: budget.num_bytes == 1000 * KIB)
        status, headers, body = one_answer(until_closed(hold(stack, address, big)))
        assert (status, headers["connection"]) == (503, "close")
        assert body["error"]["code"] == "overloaded"
        assert int(headers["retry-after"]) >= 1
        assert httpx.post(address.url + PATH, json=small).status_code == 200
        for client in held:
            client.close()
        wait_for(lambda: budget.num_bytes == 0)
        padded = {**small, "user": "x" * big}
        assert httpx.post(address.url + PATH, json=padded).status_code == 200
        assert budget.num_bytes == 0


def test_uploads_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.server.state.MAX_UPLOADING_BYTES", 100 * KIB)
    monkeypatch.setattr("jaxserve.server.state.FREE_UPLOAD_BYTES", KIB)
    with World() as world, world.listening() as address, connected(address) as client:
        client.sendall(FORM + b"x" * 200 * KIB)
        status, headers, body = one_answer(until_closed(client))
        assert (status, headers["connection"]) == (503, "close")
        assert body["error"]["code"] == "overloaded"
        assert world.app.state.server.upload_budget.num_bytes == 0
        files: Any = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
        assert httpx.post(address.url + "/v1/files", files=files).status_code == 200


def test_a_body_counts_from_where_it_is_no_longer_free_until_it_is_let_go() -> None:
    budget = BodyBudget(100, free_bytes=10)
    with budget.lease() as first, budget.lease() as second:
        first.hold(10)
        assert budget.num_bytes == 0
        first.hold(70)
        second.hold(50)
        assert budget.num_bytes == 100
        with pytest.raises(BodiesFullError):
            second.hold(51)
        with budget.lease() as third:
            third.hold(10)
    assert budget.num_bytes == 0
