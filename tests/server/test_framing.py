"""A request that two parsers could read in two ways gets one answer, and its connection ends."""

from collections.abc import Iterator

import pytest

from tests.server.sockets import connected, get, one_answer, until_closed
from tests.server.world import Address, World

START = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = b'{"prompt": "hello", "max_tokens": 1}'
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
AMBIGUOUS = {
    "both lengths": START + CHUNKED + b"content-length: 5\r\n\r\n" + CHUNKS,
    "both lengths, swapped": START + b"content-length: 5\r\n" + CHUNKED + b"\r\n" + CHUNKS,
    "two lengths": START + b"content-length: 36\r\ncontent-length: 5\r\n\r\n" + BODY,
    "two lengths in one": START + b"content-length: 36, 5\r\n\r\n" + BODY,
    "negative length": START + b"content-length: -1\r\n\r\n" + BODY,
    "signed length": START + b"content-length: +36\r\n\r\n" + BODY,
    "length of 5000 digits": START + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "two encodings": START + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "encoding within another": START + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "unknown encoding": START + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS,
    "encoding in HTTP/1.0": START.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n" + CHUNKS,
    "folded header": START + b"x: a\r\n b\r\ncontent-length: 36\r\n\r\n" + BODY,
    "folded encoding": START + b"transfer-encoding:\r\n\tchunked\r\n\r\n" + CHUNKS,
    "folded with bare line feeds": b"GET /health HTTP/1.1\nhost: localhost\nx: a\n b\n\n",
    "blank before colon": START + b"content-length : 36\r\n\r\n" + BODY,
    "bare carriage return": START + b"x: a\rcontent-length: 36\r\n\r\n" + BODY,
    "NUL in a header": START + b"x: a\0b\r\ncontent-length: 36\r\n\r\n" + BODY,
    "chunk size with sign": START + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "chunk size with prefix": START + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size of 30 digits": START + CHUNKED + b"\r\n" + b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
    "no chunk size": START + CHUNKED + b"\r\n\r\nhello\r\n0\r\n\r\n",
    "chunk longer than its size": START + CHUNKED + b"\r\n3\r\nhello\r\n0\r\n\r\n",
    "bare line feed after a size": START + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "tiny chunks": START + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 10_000,
    "absolute target": b"GET http://localhost/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "authority as target": b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "star as target": b"GET * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\nx: y\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
    "host with a path": b"GET /health HTTP/1.1\r\nhost: localhost/x\r\n\r\n",
    "host with a user": b"GET /health HTTP/1.1\r\nhost: evil@localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": b"GET /health HTTP/3.0\r\nhost: localhost\r\n\r\n",
}


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with World() as world, world.listening() as address:
        yield address


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_gets_one_error_and_a_closed_connection(
    address: Address, sent: bytes
) -> None:
    with connected(address) as client:
        client.sendall(sent + get("/v1/models"))
        status, headers, body = one_answer(until_closed(client))
    assert status == 400
    assert headers["connection"] == "close"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "invalid_http"


def test_the_error_says_what_is_wrong(address: Address) -> None:
    with connected(address) as client:
        client.sendall(AMBIGUOUS["both lengths"])
        _, _, body = one_answer(until_closed(client))
    assert "Content-Length and Transfer-Encoding" in body["error"]["message"]


def test_a_chunk_that_is_wrong_after_the_answer_gets_no_second_answer(address: Address) -> None:
    with connected(address) as client:
        client.sendall(START.replace(b"/v1/completions", b"/nowhere") + CHUNKED + b"\r\n1\r\nx\r\n")
        data = client.recv(65536)
        assert data.startswith(b"HTTP/1.1 404")
        client.sendall(b"wrong\r\n")
        data += until_closed(client)
    assert data.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "sent",
    [
        START + CHUNKED + b"\r\n" + CHUNKS,
        START + b"content-length: 36\r\ncontent-length: 36\r\n\r\n" + BODY,
        START + CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
        START + CHUNKED + b"\r\n24;name=value\r\n" + BODY + b"\r\n0\r\nx-trailer: y\r\n\r\n",
        START.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: 36\r\n\r\n" + BODY,
        b"POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\n"
        b"content-length: 36\r\n\r\n" + BODY,
    ],
)
def test_what_has_one_meaning_is_answered(address: Address, sent: bytes) -> None:
    with connected(address) as client:
        client.sendall(sent)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
