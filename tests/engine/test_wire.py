"""Commands and replies over sockets: nothing is lost, nothing waits, nothing strange gets in."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from jaxserve.api.request import FinishReason, Request, RequestMetrics
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.api.tokens import End, Start, TokenBatch
from jaxserve.client.wire import (
    MalformedError,
    SocketPort,
    decode_command,
    decode_reply,
    encode_command,
    encode_reply,
)
from jaxserve.engine.loop import Abort, Add, Command, Finish, Leave, Refusal, Reply
from jaxserve.errors import ContextLengthError, InvalidRequestError, OverloadedError
from tests.engine.world import request
from tests.fakes import token_logprobs

TIMEOUT_S = 10.0
EVERYTHING: dict[str, Any] = {
    "temperature": 0.5,
    "logit_bias": {3: -1.5},
    "allowed_token_ids": (1, 2),
    "bad_words": ("x",),
    "stop": ("a", "b"),
    "stop_token_ids": (4,),
    "seed": -(2**63),
    "max_tokens": None,
    "logprobs": 2,
}


class Ends:
    """The engine's end, and clients' ends."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/e"
        self.gone: list[int] = []
        self.is_alive = True
        self.port = SocketPort(self.address, beat=lambda: self.is_alive, gone=self._take_gone)
        self.context = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []

    def _take_gone(self) -> list[int]:
        gone, self.gone = self.gone, []
        return gone

    def client(self, identity: bytes = b"7", *, unread: int = 1000) -> "zmq.Socket[bytes]":
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.RCVHWM, unread)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * TIMEOUT_S))
        socket.connect(self.address)
        self.clients.append(socket)
        return socket

    def receive(self, count: int) -> list[tuple[int, Command]]:
        found: list[tuple[int, Command]] = []
        deadline_s = time.monotonic() + TIMEOUT_S
        while len(found) < count:
            assert time.monotonic() < deadline_s
            found += self.port.receive(0.01)
        return found


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    with made.port:
        yield made
        for client in made.clients:
            client.close(linger=0)
        made.context.term()


@pytest.mark.parametrize(
    "command",
    [
        Add(request("a", list(range(1000)), **EVERYTHING), 5),
        Abort("a"),
        Finish("a", 1, 7, FinishReason.REPETITION),
        Leave(),
    ],
)
def test_commands_arrive_as_they_were(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize(
    "reply",
    [
        Refusal("a", "no", retry_after_s=2.0),
        TokenBatch(
            keys=[1, 2],
            token_ids=[5, 6],
            logprobs={1: token_logprobs(6)},
            starts=[Start(1, 0, 1.0, None, (token_logprobs(3),))],
            ends=[End(2, FinishReason.STOP, RequestMetrics(arrival_s=1.0), 6)],
        ),
    ],
)
def test_replies_arrive_as_they_were(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"not MessagePack"],
        [b"\x92\x02\x05"],  # Abort(5)
        [b"\x92\x09\xa1a"],  # a command that there is not
        [*encode_command(Abort("a")), b""],
        encode_command(Add(request("a"), 0))[:1],
        [encode_command(Add(request("a"), 0))[0], b"odd"],
    ],
)
def test_what_is_no_command_is_not_understood(frames: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        decode_command(frames)


def test_a_port_drops_what_is_no_command_and_goes_on(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = ends.client(b"stranger")
    stranger.send_multipart(encode_command(Abort("a")))
    client = ends.client()
    client.send_multipart([b"rubbish"])
    client.send_multipart(encode_command(Abort("b")))
    assert ends.receive(1) == [(7, Abort("b"))]
    deadline_s = time.monotonic() + TIMEOUT_S
    while caplog.text.count("dropped a malformed message") < 2 and time.monotonic() < deadline_s:
        assert list(ends.port.receive(0.01)) == []
    assert caplog.text.count("dropped a malformed message") == 2


def test_a_client_that_does_not_read_gets_all_in_few_pieces_and_nobody_waits(ends: Ends) -> None:
    slow, quick = ends.client(b"1", unread=1), ends.client(b"2")
    for client in (slow, quick):
        client.send_multipart(encode_command(Abort("a")))
    ends.receive(2)
    count = 20_000
    began_s = time.monotonic()
    for token in range(count):
        ends.port.send(1, TokenBatch(keys=[0] * 64, token_ids=[token] * 64))
    ends.port.send(1, Refusal("b", "no"))
    ends.port.send(2, Refusal("c", "no"))
    assert time.monotonic() - began_s < TIMEOUT_S
    assert len(ends.port._late[1]) == 2  # what is late is one batch, and the refusal after it
    assert decode_reply(quick.recv()) == Refusal("c", "no")
    token_ids: list[int] = []
    num_messages = 0
    while True:
        list(ends.port.receive(0.001))
        if not slow.poll(1):
            continue
        reply = decode_reply(slow.recv())
        num_messages += 1
        if isinstance(reply, Refusal):
            break
        token_ids += reply.token_ids[::64]
    assert token_ids == list(range(count))
    assert num_messages < count / 4
    assert not ends.port._late


def test_what_is_for_a_client_that_is_gone_is_dropped(ends: Ends) -> None:
    ends.port.send(5, Refusal("a", "no"))
    ends.gone = [5]
    assert list(ends.port.receive(0.0)) == [(5, Leave())]
    assert not ends.port._late


def test_a_port_is_open_until_its_heart_stops(ends: Ends) -> None:
    list(ends.port.receive(0.0))
    assert ends.port.is_open
    ends.is_alive = False
    list(ends.port.receive(0.0))
    assert not ends.port.is_open


def test_errors_keep_their_kind_on_the_way() -> None:
    error = Refusal.of("a", ContextLengthError("too long", param="prompt")).error()
    assert isinstance(error, InvalidRequestError)
    assert (error.message, error.param, error.code) == (
        "too long",
        "prompt",
        "context_length_exceeded",
    )
    full = Refusal.of("a", OverloadedError("full", retry_after_s=3.0)).error()
    assert isinstance(full, OverloadedError)
    assert full.retry_after_s == 3.0


@pytest.mark.parametrize(
    "asked",
    [
        {"json": {"type": "integer"}},
        {"choice": ["yes", "no"]},
        {"regex": "a", "reasoning_end": "b"},
    ],
)
def test_what_an_answer_must_look_like_survives_the_wire(asked: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**asked))
    add = Add(Request(id="a", prompt_ids=(1,), params=params), 0)
    decoded = decode_command(encode_command(add))
    assert isinstance(decoded, Add)
    assert decoded.request.params.structured_outputs == params.structured_outputs
