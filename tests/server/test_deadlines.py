"""A connection that stops in the middle of something is cut, and no other is."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from jaxserve.server import ServerConfig
from tests.server.world import Address, World

TIMEOUT_S = 0.4
DEFAULT_S = ServerConfig(port=0).header_timeout_s  # the shortest of the three
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = b'{"prompt": "hello", "max_tokens": 1}'


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    config = ServerConfig(
        port=0, header_timeout_s=TIMEOUT_S, body_timeout_s=TIMEOUT_S, keep_alive_timeout_s=TIMEOUT_S
    )
    with World(config=config) as world, world.listening() as address:
        yield address


@pytest.fixture
def client(address: Address) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", address.port), timeout=60.0) as client:
        yield client


def seconds_until_cut(client: socket.socket) -> float:
    began_s = time.monotonic()
    while client.recv(65536):
        pass
    return time.monotonic() - began_s


def answer(client: socket.socket) -> bytes:
    """Read one answer, which has a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return head


@pytest.mark.parametrize("sent", [b"", b"P", HEAD, HEAD + b"content-length: 5\r\n"])
def test_unfinished_headers_are_cut(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    assert 0.5 * TIMEOUT_S < seconds_until_cut(client) < DEFAULT_S


def test_headers_that_drip_are_cut_all_the_same(client: socket.socket) -> None:
    num_sent = 0
    with suppress(BrokenPipeError, ConnectionResetError):
        for num_sent, byte in enumerate(HEAD * 10):  # noqa: B007
            client.sendall(bytes([byte]))
            time.sleep(0.05)
    assert 0 < num_sent < 5 * TIMEOUT_S / 0.05


def test_an_unfinished_body_is_cut(client: socket.socket) -> None:
    client.sendall(HEAD + b"content-length: 100\r\n\r\n" + BODY)
    assert 0.5 * TIMEOUT_S < seconds_until_cut(client) < DEFAULT_S


def test_a_slow_body_that_keeps_coming_is_read() -> None:
    # A piece may be late on a busy machine, but not by a second.
    timeout_s = 1.0
    config = ServerConfig(port=0, body_timeout_s=timeout_s)
    with (
        World(config=config) as world,
        world.listening() as address,
        socket.create_connection(("127.0.0.1", address.port), timeout=60.0) as client,
    ):
        began_s = time.monotonic()
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY))
        for byte in BODY:
            client.sendall(bytes([byte]))
            time.sleep(1.2 * timeout_s / len(BODY))
        assert answer(client).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began_s > timeout_s


def test_the_next_request_of_a_connection_has_the_deadline_too(client: socket.socket) -> None:
    request = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    for _ in range(3):
        client.sendall(request)
        assert answer(client).startswith(b"HTTP/1.1 200")
    client.sendall(HEAD)
    assert 0.5 * TIMEOUT_S < seconds_until_cut(client) < DEFAULT_S


def test_an_answer_that_takes_long_is_not_cut() -> None:
    config = ServerConfig(port=0, header_timeout_s=0.1, body_timeout_s=0.1)
    world = World(config=config, step_s=0.3)
    with (
        world,
        world.listening() as address,
        socket.create_connection(("127.0.0.1", address.port)) as client,
    ):
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_endless_headers_are_refused(client: socket.socket) -> None:
    data = b""
    try:
        for _ in range(20):
            client.sendall(b"x-long: " + b"a" * 8192 + b"\r\n" if data else HEAD)
            data = b"sent"
        data = client.recv(65536)
    except (BrokenPipeError, ConnectionResetError):
        return
    assert data.startswith(b"HTTP/1.1 400")


def test_what_is_no_http_is_refused(client: socket.socket) -> None:
    client.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 400")
