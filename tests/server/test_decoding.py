"""Large JSON: counted before it is built, decoded in pieces, and equal to what a decoder says."""

import json
import random
from typing import Any

import msgspec
import pytest

from jaxserve.errors import InvalidRequestError
from jaxserve.server.http import decoding
from jaxserve.server.http.decoding import decode_json

CHARS = 'ab"\\,[]{}: é\n'


def value(chance: random.Random, depth: int = 3) -> Any:
    kind = chance.random()
    if depth and kind < 0.3:
        return [value(chance, depth - 1) for _ in range(chance.randrange(6))]
    if depth and kind < 0.6:
        return {text(chance): value(chance, depth - 1) for _ in range(chance.randrange(6))}
    return chance.choice([text(chance), chance.randrange(10**6), 1.5, None, True, ""])


def text(chance: random.Random) -> str:
    return "".join(chance.choices(CHARS, k=chance.randrange(12)))


def damaged(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    if chance.random() < 0.5:
        return data[:place] + data[place + 1 :]
    return data[:place] + chance.choice(b',[]{}":\\ 1').to_bytes() + data[place:]


def decoded(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except (ValueError, RecursionError):
        return "an error"


def test_pieces_are_decoded_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE_BYTES", 20)
    chance = random.Random(0)
    for _ in range(600):
        monkeypatch.setattr(decoding, "SLICE_BYTES", chance.choice([3, 7, 50, 1000]))
        indent = chance.choice([None, 1])
        data = json.dumps(value(chance), ensure_ascii=chance.random() < 0.5, indent=indent).encode()
        for _ in range(chance.randrange(3)):
            data = damaged(data, chance)
        assert decoded(decode_json, data) == decoded(msgspec.json.decode, data), data


LARGE: dict[str, tuple[bytes, str | None, str]] = {
    "lists": (b'{"a":1,"prompt":[%b1],"b":2}' % (b"[]," * 200_000), "prompt", "100000 lists"),
    "objects": (b'{"messages":[%b1]}' % (b"{}," * 200_000), "messages", "100000 lists and objects"),
    "strings": (b'{"stop":[%b1]}' % (b'"",' * 600_000), "stop", "200000 strings"),
    "values": (b'{"x":{"prompt":[%b1]}}' % (b"1," * 2_000_000), "x", "1500000 values"),
    "depth": (b'{"m":[1],"n":%b%b}' % (b"[" * 50_000, b"]" * 50_000), "n", "256 levels"),
    "in no object": (b"[%b1]" % (b"[]," * 200_000), None, "100000 lists"),
    "behind a text": (
        b'{"a":"\\"[[[ %b","b":[%b1]}' % (b"\\\\" * 100_000, b"[]," * 200_000),
        "b",
        "100000 lists",
    ),
}


@pytest.mark.parametrize(("body", "param", "limit"), LARGE.values(), ids=LARGE)
def test_too_much_is_refused_by_name(body: bytes, param: str | None, limit: str) -> None:
    with pytest.raises(InvalidRequestError, match=limit) as caught:
        decode_json(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [123_456] * 131_072},
        {"input": [[123_456] * 512] * 2048},
        {"prompt": '[{\\",' * 1_000_000},
        {"logit_bias": {str(token): 1 for token in range(65_536)}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 4096},
    ],
    ids=["ids", "inputs", "text", "biases", "messages"],
)
def test_what_people_send_is_within_the_limits(body: Any) -> None:
    assert decode_json(json.dumps(body).encode()) == body
