"""Clients that say what they like, over real sockets."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.server.world import Address

TIMEOUT_S = 30.0


@contextmanager
def connected(address: Address) -> Iterator[socket.socket]:
    """A connection to a server."""
    with socket.create_connection(("127.0.0.1", address.port), timeout=TIMEOUT_S) as client:
        yield client


def until_closed(client: socket.socket) -> bytes:
    """All that the server sends until it closes the connection; fails when it does not."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def one_answer(data: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the one answer that some bytes are; fails for more or less."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), data
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(body) == int(headers["content-length"]), data
    return int(status_line.split()[1]), headers, json.loads(body)


def get(path: str) -> bytes:
    """A request that closes its connection."""
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


def post_head(path: str, num_bytes: int) -> bytes:
    """The headers of a request with a JSON body of so many bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {num_bytes}\r\n\r\n"
    ).encode()
