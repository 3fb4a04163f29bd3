"""A client that leaves ends the work done for it, wherever it leaves."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from jaxserve.server import ServerConfig
from tests.server.world import Address, World, wait_for

SLOW = {"max_tokens": 120, "ignore_eos": True}
TEXT = ("/v1/completions", {"prompt": "x", **SLOW})
PROMPTS = ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2, **SLOW})
CHAT = (
    "/v1/chat/completions",
    {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True},
)


@pytest.fixture(scope="module")
def slow() -> Iterator[tuple[World, Address]]:
    """A server that takes 20 ms per token, so that clients leave in the middle of an answer."""
    with World(step_s=0.02) as world, world.listening() as address:
        yield world, address


@pytest.mark.parametrize(("path", "body"), [TEXT, PROMPTS, CHAT], ids=["text", "prompts", "chat"])
def test_leaving_a_stream_aborts_it(
    slow: tuple[World, Address], path: str, body: dict[str, object]
) -> None:
    world, address = slow
    with httpx.stream("POST", address.url + path, json={**body, "stream": True}) as response:
        next(response.iter_lines())
        assert not world.is_idle()
    before = world.runner.num_computed_tokens
    world.wait_until_idle()
    # Aborted, not finished: six choices of 120 tokens would have been computed.
    assert world.runner.num_computed_tokens - before < 60


@pytest.mark.parametrize(("path", "body"), [TEXT, PROMPTS, CHAT], ids=["text", "prompts", "chat"])
def test_leaving_before_a_whole_answer_aborts_it(
    slow: tuple[World, Address], path: str, body: dict[str, object]
) -> None:
    world, address = slow
    before = world.runner.num_computed_tokens
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address.url + path, json=body, timeout=httpx.Timeout(5, read=0.2))
    world.wait_until_idle()
    assert world.runner.num_computed_tokens - before < 200


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_waiting_in_the_queue_aborts_too(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(step_s=0.02, max_num_seqs=1)
    with world, world.listening() as address:
        path, body = TEXT

        def hold() -> None:
            httpx.post(address.url + path, json=body, timeout=60)

        first = threading.Thread(target=hold)
        first.start()
        wait_for(lambda: world.client.stats().num_running == 1)
        second = {**body, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address.url + path, json=second, timeout=httpx.Timeout(5, read=0.3))
        wait_for(lambda: world.client.stats().num_waiting == 0)
        assert world.client.stats().num_running == 1
        first.join()
    assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []


def test_a_stream_that_is_not_read_is_cut_and_aborted() -> None:
    world = World(config=ServerConfig(port=0, send_timeout_s=0.3), step_s=0.001)
    body = json.dumps({**TEXT[1], "n": 8, "stream": True, "logprobs": 5}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    # With larger buffers, the system would take the whole answer at once.
    with world, world.listening(send_buffer=4096) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", address.port))
        client.sendall(head + body)
        wait_for(lambda: not world.is_idle())
        world.wait_until_idle()
        wait_for(lambda: not address.server.server_state.connections)
        data = b""
        with suppress(ConnectionResetError):
            while piece := client.recv(65536):
                data += piece
    assert b"data: {" in data
    assert b"[DONE]" not in data
